"""Sums, means and variances over response tokens only. Exact counts, no epsilon in a denominator.

What stands outside the mask never counts: it is replaced by 0 before any arithmetic, not multiplied by 0, so that
neither a value nor a gradient there (NaN included) can leak in.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mask = Bool[Tensor, "B R"] | Float[Tensor, "B R"]
"""True or 1.0 at response tokens."""


def zero_outside(x: Float[Tensor, "B R"], mask: Mask) -> Float[Tensor, "B R"]:
    """x where the mask is set, 0 elsewhere; the gradient elsewhere is 0 too."""
    return x.masked_fill(~mask.bool(), 0)


def masked_sum(x: Float[Tensor, "B R"], mask: Mask, dim: int | None = None) -> Float[Tensor, "..."]:
    """Sum where the mask is set: over everything (scalar), or over `dim`."""
    kept = zero_outside(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Float[Tensor, "B R"], mask: Mask, dim: int | None = None) -> Float[Tensor, "..."]:
    """Mean where the mask is set, divided by exactly n; 0 where it is set nowhere."""
    inside = mask.bool()
    count = inside.sum() if dim is None else inside.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Float[Tensor, "B R"], mask: Mask, *, ddof: int = 1) -> Float[Tensor, ""]:
    """Variance where the mask is set, divided by n − ddof (by 1 at least: a single token has variance 0)."""
    centred = x - masked_mean(x, mask)
    return masked_sum(centred.square(), mask) / (mask.bool().sum() - ddof).clamp(min=1)


def whiten(
    x: Float[Tensor, "B R"],
    mask: Mask,
    *,
    shift_mean: bool = True,
    ddof: int = 1,
    eps: float = 1e-8,
    floor: bool = False,
) -> Float[Tensor, "B R"]:
    """(x − mean) / √(variance + eps) over the mask, all rows together; 0 outside it.

    With shift_mean=False the mean is added back: the scale alone changes, as for rewards in Ziegler et al. 2019.
    Peers differ here. Bessel's correction (ddof=1) is the majority's (verl, TRL, torchtune); ddof=0 is OpenRLHF's.
    eps is added to the variance, as by most; floor=True takes max(variance, eps) instead (OpenRLHF): the two part
    only where the variance is about eps, and there the sum bends smoothly.
    """
    mean, variance = masked_mean(x, mask), masked_var(x, mask, ddof=ddof)
    scale = torch.rsqrt(variance.clamp(min=eps) if floor else variance + eps)
    white = (x - mean) * scale
    return zero_outside(white if shift_mean else white + mean, mask)
