"""Which module of a model first gives numbers that are not finite."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.engine import plain
from rlhf_cli.engine.value_head import SharedCritic, ValueModel
from rlhf_cli.rl.rollout import Rollout


class _Found(Exception):
    """A module whose output is not finite, in words."""


@torch.no_grad()
def first_nonfinite(model: Any, rollout: Rollout, rows: int) -> str | None:
    """The first module, in the order of the computation, whose output on this rollout holds a NaN or an infinity, and
    whether its input or its weights did already; None: every output is finite.

    `model`: a causal LM or a critic. It goes the plain way, `rows` rows at a time: the fast one calls no module.
    """
    hooks = [
        module.register_forward_hook(partial(_look, name or "the whole model"), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        for piece in rollout.pieces(rows):
            _forward(model, rollout.select(piece).trimmed())
    except _Found as found:
        return str(found)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _forward(model: Any, rollout: Rollout) -> None:
    has_values = isinstance(model, ValueModel | SharedCritic)
    trunk = model.base_model if has_values else model
    has_head = trunk.get_output_embeddings() is not None
    inputs: list[Tensor] | None = [] if has_values and has_head else None
    states = plain.response_outputs(trunk, rollout, plain.Facts(plain.argument_names(trunk)), inputs)
    if has_values:
        model.score(inputs[-1] if inputs else states)


def _look(name: str, module: nn.Module, given: Any, options: Any, output: Any) -> None:
    if _is_finite(_tensors(output)):
        return
    if not _is_finite(module.parameters()):
        cause = "its weights are not finite"
    elif not _is_finite(_tensors((given, options))):
        cause = "its input is not finite already"
    else:
        cause = "its input and its weights are finite"
    raise _Found(f"{name} ({type(module).__name__}; {cause})")


def _is_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in what a module was given or gave; a KV cache is not looked into."""
    match value:
        case Tensor():
            if value.is_floating_point():
                yield value
        case Mapping():
            yield from _tensors(list(value.values()))
        case list() | tuple():
            for each in value:
                yield from _tensors(each)
