"""Sums, means and variances over response tokens only. Exact counts, no epsilon in a denominator."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(x: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"] | Float[Tensor, "B R"], dim: int | None = None):  # type: ignore[no-untyped-def]
    """Sum where the mask is set; what stands elsewhere (NaN too) does not count."""
    kept = x.masked_fill(~mask.bool(), 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x, mask, dim: int | None = None):  # type: ignore[no-untyped-def]
    """Mean where the mask is set; 0 where it is set nowhere."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"] | Float[Tensor, "B R"], *, ddof: int = 1) -> Tensor:
    """Variance where the mask is set, divided by n − ddof."""
    centred = x - masked_mean(x, mask)
    return masked_sum(centred.square(), mask) / (mask.sum() - ddof).clamp(min=1)


def whiten(
    x: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"] | Float[Tensor, "B R"],
    *,
    shift_mean: bool = True,
    ddof: int = 1,
    eps: float = 1e-8,
) -> Float[Tensor, "B R"]:
    """To mean 0 and variance 1 over the mask (the mean is added back if not `shift_mean`); 0 outside.

    ddof=1 and variance + 1e-8, as most peers do.
    """
    mean = masked_mean(x, mask)
    white = (x - mean) * (masked_var(x, mask, ddof=ddof) + eps).rsqrt()
    if not shift_mean:
        white = white + mean
    return white.masked_fill(~mask.bool(), 0)
