"""Memory that is used again. On the CPU a large temporary may otherwise be mapped and zeroed afresh by the system each
time, which costs more than the operation that fills it; a GPU's allocator keeps memory by itself."""

import torch
from torch import Tensor

from rlhf_cli.internals.torch_private import base

_scratch: dict[tuple[str, torch.dtype], tuple[Tensor, dict[tuple[int, ...], Tensor]]] = {}
"""The memory, and the shapes it has been given out in: making a view costs as much as a small operation."""
_returned: dict[torch.dtype, Tensor] = {}
VIEWS = 64
"""Of one piece of memory."""


def scratch(
    name: str, like: Tensor, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Uninitialised memory of `like`'s kind that is the caller's until it asks for the same name and dtype again."""
    shape, dtype = tuple(like.shape) if shape is None else shape, dtype or like.dtype
    if like.device.type != "cpu":
        return like.new_empty(shape, dtype=dtype)
    held, views = _scratch.get((name, dtype), (None, {}))
    if (view := views.get(shape)) is not None:
        return view
    size = torch.Size(shape).numel()
    if held is None or held.numel() < size or len(views) == VIEWS:
        views = {}
    if held is None or held.numel() < size:
        held = _fresh(like, (size,), dtype)
    with torch.inference_mode(False):
        views[shape] = _first(held, shape)
    _scratch[name, dtype] = held, views
    return views[shape]


def borrow(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory that is the caller's for good, or until it gives it back."""
    held = _returned.pop(dtype, None) if like.device.type == "cpu" else None
    if held is None or held.numel() < torch.Size(shape).numel():
        return _fresh(like, shape, dtype)
    return _first(held, shape)


def give_back(borrowed: Tensor) -> None:
    """Nobody reads it any more: the next one may have it."""
    if borrowed.device.type == "cpu":
        _returned[borrowed.dtype] = base(borrowed)


def _fresh(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is made inside could never be written to outside
        return torch.empty(shape, dtype=dtype, device=like.device)


def _first(held: Tensor, shape: tuple[int, ...]) -> Tensor:
    return held.view(-1)[: torch.Size(shape).numel()].view(shape)
