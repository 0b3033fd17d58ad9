"""Log-probabilities, KL estimators, the full KL and entropy."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def select_logprobs(
    logits: Float[Tensor, "*shape V"], labels: Int[Tensor, "*shape"], *, temperature: float = 1.0
) -> Float[Tensor, "*shape"]:
    """log softmax(logits / temperature) at the labels: the log-prob under the distribution that was sampled from."""
    return (logits / temperature).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


def kl_estimate(
    logprobs: Float[Tensor, "*shape"],
    ref_logprobs: Float[Tensor, "*shape"],
    *,
    estimator: str,
    limit: float | None = None,
) -> Float[Tensor, "*shape"]:
    """Per-token estimates of KL(π ‖ π_ref) from tokens that π sampled (Schulman 2020, "Approximating KL divergence").

    With l = log π − log π_ref:

        k1 = l                  unbiased; may be negative, high variance
        k2 = l²/2               biased, low variance
        k3 = exp(−l) − 1 + l    unbiased, never negative (without its −1: right gradient, value 1 too high)
        abs = |l|               a distance some peers offer; estimates no KL

    A good value is not a good gradient. Differentiated through π as a LOSS, in expectation over π:
    k1 gives E[∇log π] = 0, pure noise;  k2 gives E[l ∇log π] = ∇KL(π ‖ π_ref), the right one;
    k3 gives E[(1 − π_ref/π) ∇log π] = ∇KL(π_ref ‖ π), the other direction's: biased as a gradient of this KL.
    See `losses.kl_loss`. As a REWARD nothing flows through, and k1 and k3 are right.

    Nothing is clamped by default, as in TRL: what is logged is what happened. `limit` ≥ 1 cuts values at ±limit, and
    the gradient beyond: ±10 in verl (k3), OpenRLHF and NeMo-RL (all), against one token that blows up a loss.
    Raises ValueError for another estimator; the exact KL needs logits: `full_kl`.
    """
    log_ratio = logprobs - ref_logprobs
    if limit is not None:
        # past 2·limit each estimate is past ±limit: no value changes, but exp stays finite in the backward pass
        values = kl_estimate(log_ratio.clamp(-2 * limit, 2 * limit), torch.zeros_like(log_ratio), estimator=estimator)
        return values.clamp(-limit, limit)
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            # expm1: near l = 0, exp(−l) − 1 + l would lose all its digits
            return (-log_ratio).expm1() + log_ratio
        case "abs":
            return log_ratio.abs()
    raise ValueError(f"estimator={estimator!r}: k1, k2, k3 or abs")


def full_kl(
    logits: Float[Tensor, "*shape V"], ref_logits: Float[Tensor, "*shape V"], *, direction: str = "policy_ref"
) -> Float[Tensor, "*shape"]:
    """Σ_v p (log p − log q), the KL over the whole vocabulary at each position, in nats.

    policy_ref is KL(π ‖ π_ref), ref_policy is KL(π_ref ‖ π). Value and gradient are exact at each position; give
    `ref_logits` without gradient. Raises ValueError for another direction.
    """
    p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    match direction:
        case "policy_ref":
            return (p.exp() * (p - q)).sum(-1)
        case "ref_policy":
            return (q.exp() * (q - p)).sum(-1)
    raise ValueError(f"direction={direction!r}: policy_ref or ref_policy")


def entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """−Σ_v p log p of the softmax at each position, in nats."""
    p = logits.log_softmax(-1)
    return -(p.exp() * p).sum(-1)
