"""Log-probs and entropies of given tokens straight from hidden states: [N, V] is never held whole in many copies.

log softmax(s Wᵀ / T)[y] costs one matrix product and three passes over the logits. What its gradient needs is
exp(logits − max) and two numbers a row, so that is kept (one buffer where it fits, else recomputed chunk by chunk),
instead of the logits, their softmax, its logarithm and their products.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_cli.engine.casts import add_product_, cached_cast, factors_in, products_dtype, sizes
from rlhf_cli.engine.gradients import gradient_of, rest
from rlhf_cli.engine.scratch import borrow, give_back, scratch

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**26}
"""Tokens × vocabulary of one product. What fits in one is kept for the backward pass, else computed again there."""
CACHED_ELEMENTS = 2**18
"""What passes over logits work on at once on the CPU: a megabyte, which stays in the cache from pass to pass."""


def token_logprobs(
    states: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log softmax(states @ weight.T / temperature)[labels] and the entropy, in float32 (float64 stays float64)."""
    dtype = products_dtype(states)
    if states.is_cuda:
        states = states.to(dtype)
    elif dtype.itemsize < 4:
        states = states.float()  # `factors_in` rounds them in the product
    logprobs, entropies = _TokenLogprobs.apply(states, weight, labels, temperature, dtype)
    return logprobs, entropies


def logit_logprobs(
    logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], *, temperature: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The same from logits that a model gave: log softmax(logits / temperature)[labels] and the entropy."""
    logprobs, entropies = _LogitLogprobs.apply(logits, labels, temperature)
    return logprobs, entropies


class _LogitLogprobs(torch.autograd.Function):
    """As `_TokenLogprobs`, with x = logits / T: nothing but the logits themselves is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropies, total = (logits.new_empty(len(logits), dtype=wide) for _ in range(3))
        for some, x in _pieces(logits, slice(0, len(logits))):
            logprobs[some], entropies[some], total[some] = _exponentials_(
                x.to(wide, copy=True), labels[some], temperature
            )
        ctx.save_for_backward(logits, labels, total, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, labels, total, entropies = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        d_logprobs = torch.zeros_like(total) if d_logprobs is None else d_logprobs / ctx.temperature
        d_entropies = None if d_entropies is None else d_entropies / ctx.temperature
        for some, x in _pieces(logits, slice(0, len(logits))):
            e = x.to(total.dtype, copy=True)
            _exponentials_(e, labels[some], ctx.temperature)
            d_entropy = None if d_entropies is None else d_entropies[some]
            _gradient_(e, total[some], labels[some], entropies[some], d_logprobs[some], d_entropy)
            gradient[some] = e
        return gradient, None, None


class _TokenLogprobs(torch.autograd.Function):
    """With x = s Wᵀ / T, e = exp(x − max x), Z = Σ e, p = e / Z and H the entropy:

    d log p_y / dx = onehot(y) − p,   dH / dx = −p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, temperature: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        count, vocabulary, factor = len(states), weight.shape[0], _factor(weight, dtype)
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        chunks = _chunks(count, vocabulary, states)
        keeps = ctx.needs_input_grad[0] and len(chunks) == 1
        room = borrow(states, (sizes(states, dtype)(chunks[0].stop), vocabulary), wide)
        logprobs, entropies, total = (states.new_empty(count, dtype=wide) for _ in range(3))
        for rows in chunks:
            logits = _logits(_some(states, rows, dtype), factor, dtype, out=room)
            for some, x in _pieces(logits[: rows.stop - rows.start], rows):
                logprobs[some], entropies[some], total[some] = _exponentials_(x, labels[some], temperature)
        if not keeps:
            give_back(room)
        ctx.save_for_backward(states, labels, total, entropies)
        ctx.kept, ctx.weight, ctx.temperature, ctx.dtype = room if keeps else None, weight, temperature, dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        (states, labels, total, entropies), weight, dtype = ctx.saved_tensors, ctx.weight, ctx.dtype
        kept, ctx.kept = ctx.kept, None  # the gradient is written over it; a second backward pass computes it again
        d_states = torch.empty_like(states)
        d_weight = gradient_of(weight) if ctx.needs_input_grad[1] else None
        factor = _factor(weight, dtype)
        d_logprobs = torch.zeros_like(total) if d_logprobs is None else d_logprobs / ctx.temperature
        d_entropies = None if d_entropies is None else d_entropies / ctx.temperature
        chunks = _chunks(len(states), weight.shape[0], states)
        size = (sizes(states, dtype)(chunks[0].stop), weight.shape[0])
        room = borrow(states, size, total.dtype) if kept is None else kept
        for rows in chunks:
            some_states = _some(states, rows, dtype)
            d = room[: len(some_states)] if kept is not None else _logits(some_states, factor, dtype, out=room)
            for some, x in _pieces(d[: rows.stop - rows.start], rows):
                if kept is None:
                    _exponentials_(x, labels[some], ctx.temperature)
                d_entropy = None if d_entropies is None else d_entropies[some]
                _gradient_(x, total[some], labels[some], entropies[some], d_logprobs[some], d_entropy)
            d = d.to(states.dtype)
            with factors_in(dtype):
                d_states[rows] = torch.mm(d, factor.to(d.dtype))[: rows.stop - rows.start]
                if d_weight is not None:
                    add_product_(d_weight, d.T, some_states)
        give_back(room)
        return d_states, None if d_weight is None else rest(weight, d_weight), None, None, None


def _factor(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as it goes into products. A GPU's bfloat16 copy is made once an update, not once a micro-batch; its
    gradient goes to the weight itself, in float32."""
    return cached_cast(weight, dtype) if weight.is_cuda else weight


def _some(states: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Of the states a chunk, filled up with zeros to a number of rows that products have been made for."""
    some = states[rows]
    size = sizes(states, dtype)(len(some))
    return some if size == len(some) else torch.nn.functional.pad(some, (0, 0, 0, size - len(some)))


VOCABULARY = 4096
"""Rows of a bfloat16 head that the CPU takes as float32 at once."""


def _logits(states: Tensor, weight: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """states @ weight.T in the first rows of `out`, of factors in `dtype`."""
    out = out[: len(states)]
    if states.dtype != out.dtype:
        return torch.mm(states, weight.T, out_dtype=out.dtype, out=out)
    with factors_in(dtype):
        if weight.dtype == out.dtype:
            return torch.mm(states, weight.T, out=out)
        for at in range(0, len(weight), VOCABULARY):
            piece = weight[at : at + VOCABULARY].to(out.dtype)
            torch.mm(states, piece.T, out=out[:, at : at + VOCABULARY])
    return out


def _exponentials_(x: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log p of the labels, entropy, Z) of logits, which become e."""
    if temperature != 1:
        x /= temperature
    x -= x.amax(1, keepdim=True)
    chosen = x.gather(1, labels[:, None]).squeeze(1)
    e = torch.exp(x, out=scratch("exponentials", x))
    z = e.sum(1)
    entropies = z.log() - x.mul_(e).sum(1) / z
    x.copy_(e)
    return chosen - z.log(), entropies, z


def _gradient_(
    e: Tensor, total: Tensor, labels: Tensor, entropies: Tensor, d_logprobs: Tensor, d_entropies: Tensor | None
) -> None:
    """e becomes the gradient in its logits."""
    if d_entropies is None:
        e.mul_((-d_logprobs / total)[:, None])
    else:
        p = e.div_(total[:, None])
        extra = torch.special.entr(p, out=scratch("entropies", p))
        extra.addcmul_(p, entropies[:, None], value=-1).mul_(d_entropies[:, None])
        p.mul_(-d_logprobs[:, None]).add_(extra)
    e.scatter_add_(1, labels[:, None], d_logprobs[:, None])


def _chunks(count: int, vocabulary: int, like: Tensor) -> list[slice]:
    """Pieces of at most the device's limit; one at least."""
    size = max(1, CHUNK_ELEMENTS.get(like.device.type, CHUNK_ELEMENTS["cpu"]) // vocabulary)
    return [slice(at, min(at + size, count)) for at in range(0, max(1, count), size)]


def _pieces(x: Tensor, rows: slice) -> Iterator[tuple[slice, Tensor]]:
    """(which tokens, their part of x) in pieces that stay in the cache; a GPU takes all at once."""
    size = max(1, CACHED_ELEMENTS // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    for at in range(0, len(x), size):
        piece = x[at : at + size]
        yield slice(rows.start + at, rows.start + at + len(piece)), piece
