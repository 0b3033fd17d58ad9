"""Uniform numbers that are a function of where they are used, never of how a batch is laid out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014); int64 products wrap, as it wants."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniforms(
    seed: int, step: int, index: Int[Tensor, "*#shape"], position: int | Int[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """One number in [0, 1) for each rollout `index` at each token `position`: float64, the same on any device."""
    state = torch.full_like(index, seed)
    for part in (step, index, position):
        state = _mix(state * 31 + part + _GOLDEN)
    return _shift(state, 11).double() * 2.0**-53


def permutation(seed: int, step: int, epoch: int, count: int) -> Int[Tensor, " count"]:
    """A shuffle of range(count) that depends on (seed, step, epoch) only."""
    return uniforms(seed + 1_000_003, step, torch.arange(count), epoch).argsort(stable=True)
