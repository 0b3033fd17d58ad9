"""KL estimators, the full KL and entropy."""

from jaxtyping import Float
from torch import Tensor


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], *, estimator: str
) -> Float[Tensor, "*shape"]:
    """Estimates of KL(π ‖ π_ref) from tokens sampled by π (Schulman 2020, "Approximating KL divergence").

    With l = log π − log π_ref:  k1 = l (unbiased, may be negative);  k2 = l²/2 (biased, low variance);
    k3 = exp(−l) − 1 + l (unbiased, never negative; without its −1 the value is 1 too high).
    As a LOSS differentiated through π: k1's gradient has mean 0, k2's is the unbiased gradient of the KL,
    k3's is that of the reverse direction's KL(π_ref ‖ π) to first order: biased.
    """
    log_ratio = logprobs - ref_logprobs
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return (-log_ratio).exp() - 1 + log_ratio
    raise ValueError(f"estimator={estimator!r}: k1, k2 or k3")


def full_kl(
    logits: Float[Tensor, "*shape V"], ref_logits: Float[Tensor, "*shape V"], *, direction: str = "policy_ref"
) -> Float[Tensor, "*shape"]:
    """Exact KL over the vocabulary: policy_ref is KL(π ‖ π_ref), ref_policy is KL(π_ref ‖ π)."""
    p, q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    if direction == "ref_policy":
        p, q = q, p
    return (p.exp() * (p - q)).sum(-1)


def entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """−Σ p log p of the softmax."""
    p = logits.log_softmax(-1)
    return -(p.exp() * p).sum(-1)
