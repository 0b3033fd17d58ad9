"""Several rewards made one, and how much of what is learned comes from each."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.rl.advantages import group_advantages
from rlhf_cli.rl.moments import RunningMoments

Parts = dict[str, Tensor]
"""Numbers of the same B texts by source, [B] each."""


def shaped(
    values: Float[Tensor, " B"], *, saturate: float | None = None, cap: float | None = None
) -> Float[Tensor, " B"]:
    """s·tanh(r/s), slope 1 at 0 and never beyond ±s (for bounding: Fu et al. 2025), then min(·, cap)."""
    if saturate is not None:
        values = saturate * torch.tanh(values / saturate)
    return values if cap is None else values.clamp(max=cap)


def combined(values: Parts, weights: dict[str, float], how: str, *, aversion: float = 1.0) -> Float[Tensor, " B"]:
    """One score a text from the sources'.

    sum, normalised_sum: Σ w r (the second is normalised only for learning, by `apart`); mean: Σ w r / Σ w; min: the
    least, whatever the weights (Coste et al. 2024's worst case); uncertainty: −(1/a) log Σ p exp(−a r), p = w / Σ w:
    the entropic risk measure (Föllmer & Schied 2002). Its limits are the mean (a → 0) and the min (a → ∞); to second
    order in a it is mean − a/2 · variance, Coste et al.'s uncertainty-weighted objective (eq. 5).
    """
    stacked = torch.stack(list(values.values()))
    weight = torch.tensor([float(weights[name]) for name in values], dtype=stacked.dtype)[:, None]
    match how:
        case "min":
            return stacked.amin(0)
        case "mean":
            return (weight * stacked).sum(0) / weight.sum()
        case "uncertainty":
            return -torch.logsumexp((weight / weight.sum()).log() - aversion * stacked, 0) / aversion
    return (weight * stacked).sum(0)


def apart(values: Parts, weights: dict[str, float], group: Int[Tensor, " B"], moments: RunningMoments | None) -> Parts:
    """Each source normalised by itself, times its weight: their sum is what is learned from.

    Without `moments` within each group (GDPO, Liu et al. 2026, arXiv 2601.05242), the sum over its deviation in the
    batch; with them by the running statistics of all rewards up to and with these.
    """
    if moments is None:
        parts = {name: weights[name] * group_advantages(x, group, scale="std") for name, x in values.items()}
        total = torch.stack(list(parts.values())).sum(0)
        scale = total.std() + 1e-6 if len(total) > 1 else 1.0
        return {name: part / scale for name, part in parts.items()}
    for name, value in values.items():
        moments.update(name, value)
    return {name: weights[name] * moments.normalised(name, value) for name, value in values.items()}


def additive_shares(parts: Parts, group: Int[Tensor, " B"], *, grouped: bool) -> dict[str, float]:
    """Σ part·total / Σ total², both less their mean (of the group with `grouped`, else of the batch): how much of the
    advantage's variance each part makes. They sum to 1; a part that works against the whole has a share below 0."""
    within = group if grouped else torch.zeros_like(group)
    centred = {name: group_advantages(x.double(), within, scale="none") for name, x in parts.items()}
    total = torch.stack(list(centred.values())).sum(0)
    whole = float(total.square().sum())
    return {name: float((x * total).sum()) / whole if whole else 0.0 for name, x in centred.items()}


def setting_shares(values: Parts, weights: dict[str, float], how: str, *, aversion: float) -> dict[str, float]:
    """Of min and uncertainty, whose parts do not add up: the derivative of the score by each source, on average.
    They sum to 1; for min it is how often a source is the strictest."""
    stacked = torch.stack(list(values.values())).double()
    if how == "min":
        least = (stacked == stacked.amin(0)).double()
        share = least / least.sum(0)
    else:
        weight = torch.tensor([float(weights[name]) for name in values]).double()[:, None]
        share = torch.softmax(weight.log() - aversion * stacked, 0)
    return dict(zip(values, share.mean(1).tolist(), strict=True))
