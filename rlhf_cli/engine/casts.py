"""Matrix products in the weights' own precision or in bfloat16, and cached bfloat16 casts of weights.

In bfloat16 only a product's factors and its result are; weights, their gradients and the stream from layer to layer
stay float32. A weight's cast is kept while the weight is as it was, or until `forget_casts`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from rlhf_cli.engine.memory import at_shortage
from rlhf_cli.engine.scratch import scratch
from rlhf_cli.internals.torch_private import copy_all, version

_casts: dict[int, tuple[ReferenceType[Tensor], int, Tensor]] = {}
"""Of each weight's id: the weight, its version, the cast. Torch's own dictionary of tensors takes as long as a small
operation."""


def products_dtype(x: Tensor) -> torch.dtype:
    """Of the products that x goes into: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def cached_cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in this dtype; a copy is kept and made anew when the weight has changed. Neither a fused optimizer nor
    what puts a split model together tells of its changes: `forget_casts` after an optimizer's step."""
    if weight.dtype == dtype:
        return weight
    key = id(weight)
    if (found := _casts.get(key)) is not None:
        whose, seen, copy = found
        if whose() is weight and seen == version(weight) and copy.dtype == dtype:
            return copy
    with torch.no_grad():
        copy = weight.to(dtype)
    _casts[key] = ref(weight, lambda _: _casts.pop(key, None)), version(weight), copy
    return copy


_joined: dict[tuple[int, ...], tuple[tuple[ReferenceType[Tensor], ...], tuple[int, ...], Tensor]] = {}
"""Of several weights' ids: the weights, their versions, the cast of all."""


def factor(weights: tuple[Tensor, ...], dtype: torch.dtype, *, keep: bool) -> Tensor:
    """The weights one below the other, in the dtype of products; differentiable.

    `keep`: a cast of parameters is kept as `cached_cast` keeps it: a GPU makes it once an update, not once a pass.
    """
    if not keep or weights[0].dtype == dtype or not all(type(w) is torch.nn.Parameter for w in weights):
        lowered = [weight.to(dtype) for weight in weights]
        return lowered[0] if len(lowered) == 1 else torch.cat(lowered)
    copy = _joined_cast(weights, dtype)
    return cast_of(copy, *weights) if torch.is_grad_enabled() else copy


def _joined_cast(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    if (copy := _kept(weights, dtype)) is None:
        keep_casts([weights], dtype)
        copy = _kept(weights, dtype)
        assert copy is not None
    return copy


def _kept(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor | None:
    if (found := _joined.get(tuple(map(id, weights)))) is not None:
        whose, seen, copy = found
        same = all(r() is w for r, w in zip(whose, weights, strict=True))
        if same and seen == tuple(map(version, weights)) and copy.dtype == dtype:
            return copy
    return None


def keep_casts(groups: list[tuple[Tensor, ...]], dtype: torch.dtype) -> None:
    """Make the casts that `factor` keeps, of all these groups of parameters at once: one by one their launches take
    longer than they do."""
    stale = [g for g in groups if g[0].dtype != dtype and all(type(w) is torch.nn.Parameter for w in g)]
    stale = [g for g in stale if _kept(g, dtype) is None]
    with torch.inference_mode(False), torch.no_grad():
        copies = [g[0].new_empty((sum(map(len, g)), *g[0].shape[1:]), dtype=dtype) for g in stale]
        copy_together([pair for copy, g in zip(copies, stale, strict=True) for pair in rows_of(copy, g)])
    for copy, group in zip(copies, stale, strict=True):
        key = tuple(map(id, group))
        gone = partial(_forget_joined, key)
        _joined[key] = tuple(ref(w, gone) for w in group), tuple(map(version, group)), copy


def _forget_joined(key: tuple[int, ...], _: Any) -> None:
    _joined.pop(key, None)


def rows_of(place: Tensor, sources: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """(where it belongs, the source), for sources that stand in `place` one below the other."""
    return zip(place.split([len(x) for x in sources]), sources, strict=True)


def copy_together(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each source into its place, in as few launches as there are kinds of both."""
    kinds: dict[tuple[torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        kinds.setdefault((pair[0].dtype, pair[1].dtype), []).append(pair)
    for alike in kinds.values():
        copy_all([place for place, _ in alike], [source.detach() for _, source in alike])


def cast_of(copy: Tensor, *weights: Tensor) -> Tensor:
    """The kept cast of these weights, as a function of them."""
    made: Tensor = _CastOf.apply(copy, *weights)
    return made


class _CastOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copy: Tensor, *weights: Tensor) -> Tensor:
        ctx.sizes, ctx.dtype = [len(weight) for weight in weights], weights[0].dtype
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        parts = zip(d.split(ctx.sizes), wanted, strict=True)
        return None, *(part.to(ctx.dtype) if learns else None for part, learns in parts)


def forget_casts() -> None:
    """Of all weights: after a step of an optimizer, and where their memory is wanted for something else."""
    _casts.clear()
    _joined.clear()


at_shortage(forget_casts)


def sizes(like: Tensor, dtype: torch.dtype) -> Callable[[int], int]:
    """How many rows a product in this dtype is to have, of how many it needs: as many, or `padded`."""
    return padded if dtype == torch.bfloat16 and like.device.type == "cpu" else int


def padded(rows: int) -> int:
    """At most an eighth or 31 more, so that there are few sizes: the CPU's library makes a program for each new shape
    in bfloat16, which takes longer than the product."""
    step = max(32, 2 ** ((rows - 1).bit_length() - 3)) if rows else 1
    return -(-rows // step) * step


def cast(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """x itself where it is of this dtype, else in the scratch memory of that name (under autograd: a new one)."""
    if x.dtype == dtype:
        return x
    return x.to(dtype) if torch.is_grad_enabled() else scratch(name, x, dtype=dtype).copy_(x)


def added(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """x + scale · (a b + bias), in x's dtype."""
    if bias is not None:
        x = torch.add(x, bias, alpha=scale)
    if x.dtype == a.dtype:
        return torch.addmm(x, a, b, alpha=scale)
    if torch.is_grad_enabled():
        return torch.add(x, torch.mm(a, b), alpha=scale)
    if a.is_cuda:
        return torch.add(x, in_float32(torch.mm, a, b), alpha=scale)
    return torch.add(x, torch.mm(a, b, out=_room(a, b)), alpha=scale)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a b."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b)
    if not a.is_cuda:
        return total.add_(torch.mm(a, b, out=_room(a, b)))
    for at in range(0, len(a), PIECE):  # a head's gradient is half a gigabyte: no second one beside it
        total[at : at + PIECE].add_(in_float32(torch.mm, a[at : at + PIECE], b))
    return total


PIECE = 2**15
"""Rows of a float32 product that is made to be added to something."""


def _room(a: Tensor, b: Tensor) -> Tensor:
    return scratch("added", a, (a.shape[0], b.shape[1]))


def in_float32(product: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`torch.mm` or `torch.bmm`, given in float32. A GPU sums bfloat16 numbers up in float32 and gives that; rounded to
    bfloat16, as the CPU gives it, a logit of 20 is off by up to 0.06."""
    if a.dtype == torch.float32:
        return product(a, b)
    return product(a, b, out_dtype=torch.float32) if a.is_cuda else product(a, b).float()


@contextmanager
def factors_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, the CPU's products of float32 matrices round their factors to bfloat16, if that is `dtype`, and nothing
    else: what is summed up stays float32. A setting of the whole process, so for a product, not for a model."""
    if dtype != torch.bfloat16:
        yield
        return
    unit: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, unit.fp32_precision = unit.fp32_precision, "bf16"
    try:
        yield
    finally:
        unit.fp32_precision = before
