"""Losses of policy and critic: each returns (loss, metrics), metrics detached and summed over tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_cli.rl.divergences import kl_estimate
from rlhf_cli.rl.masked import masked_mean, masked_sum, masked_var

Mask = Bool[Tensor, "B R"] | Float[Tensor, "B R"]


def aggregate(per_token: Float[Tensor, "B R"], mask: Mask, *, how: str, total: float) -> Float[Tensor, ""]:
    """One number from the tokens' losses.

    sequence_mean: Σ over rows of (1/|o| Σ over tokens) / total rows — PPO and GRPO as in the papers;
    token_mean: Σ / total tokens — DAPO;  sequence_sum: Σ / total, a constant — Dr. GRPO.
    `total` counts the whole minibatch, so that the losses of its micro-batches add up to its own.
    """
    match how:
        case "sequence_mean":
            return masked_mean(per_token, mask, 1).sum() / total
        case "token_mean" | "sequence_sum":
            return masked_sum(per_token, mask) / total
    raise ValueError(f"aggregation={how!r}: sequence_mean, token_mean or sequence_sum")


def aggregation_total(mask: Mask, *, how: str, constant: float) -> float:
    """The `total` of `aggregate` for a minibatch; rows without a token do not count."""
    match how:
        case "sequence_mean":
            return max(1.0, float((mask.sum(1) > 0).sum()))
        case "token_mean":
            return max(1.0, float(mask.sum()))
    return constant


def policy_loss(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    mask: Mask,
    *,
    surrogate: str,
    epsilon: float,
    epsilon_high: float | None = None,
    dual_clip: float | None = None,
    beta_old: float = 0.0,
    aggregation: str,
    total: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The surrogate objective, negated.

    clip: −min(ρA, clip(ρ, 1−ε, 1+ε_high) A) (PPO, Schulman et al. 2017, eq. 7); dual_clip c bounds it by −cA
    where A < 0 (Ye et al. 2020).  ratio: −ρA, importance sampling.  kl_penalty: −ρA + β_old·k3(π_old ‖ π)
    (PPO-KL, eq. 8).  policy_gradient: −log π · A (REINFORCE).

    Metrics: clipfrac and approx_kl (k3 of π_old ‖ π) as SUMS over tokens, ratio_max. clipfrac counts tokens
    whose gradient is cut: ρ above with A > 0, ρ below with A < 0.
    """
    inside = mask.bool()
    log_ratio = (logprobs - old_logprobs).masked_fill(~inside, 0)
    ratio, advantages = log_ratio.exp(), advantages.masked_fill(~inside, 0)
    low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
    match surrogate:
        case "clip":
            per_token = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
            if dual_clip is not None:
                per_token = torch.where(advantages < 0, per_token.clamp(max=-dual_clip * advantages), per_token)
        case "ratio":
            per_token = -ratio * advantages
        case "kl_penalty":
            per_token = -ratio * advantages + beta_old * (ratio - 1 - log_ratio)
        case "policy_gradient":
            per_token = -logprobs.masked_fill(~inside, 0) * advantages
        case _:
            raise ValueError(f"surrogate={surrogate!r}: clip, ratio, kl_penalty or policy_gradient")
    with torch.no_grad():
        cut = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
        metrics = {
            "clipfrac": masked_sum(cut.to(ratio.dtype), mask),
            "approx_kl": masked_sum(ratio - 1 - log_ratio, mask),
            "ratio_max": ratio.masked_fill(~inside, 0).max(),
        }
    return aggregate(per_token, mask, how=aggregation, total=total), metrics


def value_loss(
    values: Float[Tensor, "B R"],
    old_values: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"],
    mask: Mask,
    *,
    clip: float | None,
    aggregation: str,
    total: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """½ (V − R)², or with `clip` c the larger of that and ½ (clip(V, V_old ± c) − R)²."""
    error = (values - returns).square()
    metrics = {"value_clipfrac": torch.zeros((), device=values.device)}
    if clip is not None:
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        metrics["value_clipfrac"] = masked_sum((clipped > error).to(values.dtype), mask).detach()
        error = torch.max(error, clipped)
    return aggregate(error / 2, mask, how=aggregation, total=total), metrics


def kl_loss(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    mask: Mask,
    *,
    estimator: str,
    aggregation: str,
    total: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The KL to the reference as a loss: k3 as in GRPO (eq. 4); see `kl_estimate` for whose gradient is biased.

    k1 has the value of k1 and the gradient of k2, since its own gradient is 0 on average.
    """
    per_token = kl_estimate(logprobs, ref_logprobs, estimator=estimator)
    if estimator == "k1":
        k2 = kl_estimate(logprobs, ref_logprobs, estimator="k2")
        per_token = per_token.detach() + k2 - k2.detach()
    return aggregate(per_token, mask, how=aggregation, total=total), {"kl": masked_sum(per_token, mask).detach()}


def explained_variance(values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], mask: Mask) -> Float[Tensor, ""]:
    """1 − Var(returns − values) / Var(returns) over the mask; 0 where the returns do not vary."""
    variance = masked_var(returns, mask)
    if variance == 0:
        return torch.zeros_like(variance)
    return 1 - masked_var(returns - values, mask) / variance
