"""Losses of policy, critic and reward model: each returns (loss, metrics), metrics detached and summed over tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_cli.rl.divergences import kl_estimate
from rlhf_cli.rl.masked import Mask, masked_mean, masked_sum, masked_var, zero_outside

LOG_RATIO_LIMIT = 20.0
"""exp of more is no ratio that a step could use, and inf · 0 would be NaN; verl and OpenRLHF cut there too."""


TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A surrogate of one's own: (log-probs, old log-probs, advantages, mask), each [B, R], to a loss per token, [B, R]."""


def aggregate(per_token: Float[Tensor, "B R"], mask: Mask, *, how: str, total: float) -> Float[Tensor, ""]:
    """One number from the tokens' losses.

    sequence_mean: Σ over rows of (1/|o| Σ over tokens) / total rows: PPO and GRPO as in the papers (eq. 3);
    token_mean: Σ / total tokens: DAPO (Yu et al. 2025, eq. 8);
    sequence_sum: Σ / total, a constant such as B·R_max: Dr. GRPO (Liu et al. 2025), without length bias;
    sequence_total: Σ over a sequence, then the mean over sequences: log π of whole responses, as REINFORCE has it.
    `total` counts the whole minibatch (see `aggregation_total`), so that its micro-batches' losses add up to its own.
    Raises ValueError for another `how`.
    """
    match how:
        case "sequence_mean":
            return masked_mean(per_token, mask, 1).sum() / total
        case "token_mean" | "sequence_sum" | "sequence_total":
            return masked_sum(per_token, mask) / total
    raise ValueError(f"aggregation={how!r}: sequence_mean, token_mean, sequence_sum or sequence_total")


def aggregation_total(mask: Mask, *, how: str, constant: float) -> float:
    """The `total` of `aggregate` for a minibatch: its rows, its tokens, or the constant; never 0.

    Rows without a token do not count (as in verl and OpenRLHF; TRL divides by all rows).
    """
    inside = mask.bool()
    match how:
        case "sequence_mean" | "sequence_total":
            return max(1.0, float(inside.any(1).sum()))
        case "token_mean":
            return max(1.0, float(inside.sum()))
        case "sequence_sum":
            return constant
    raise ValueError(f"aggregation={how!r}: sequence_mean, token_mean, sequence_sum or sequence_total")


def policy_loss(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    mask: Mask,
    *,
    surrogate: str | TokenLoss,
    epsilon: float,
    epsilon_high: float | None = None,
    dual_clip: float | None = None,
    beta_old: float = 0.0,
    direction: str = "old_policy",
    ratio_level: str = "token",
    aggregation: str,
    total: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The surrogate objective, negated; with ρ = π/π_old of each token:

    clip             −min(ρA, clip(ρ, 1−ε, 1+ε_high) A)   PPO (Schulman et al. 2017, eq. 7); ε_high: DAPO (eq. 8)
    kl_penalty       −ρA + β_old · KL(π_old ‖ π)          PPO-KL (ibid., eq. 8); direction="policy_old": KL(π ‖ π_old)
    ratio            −ρA                                  importance sampling, unclipped
    policy_gradient  −A log π                             REINFORCE, A2C

    `dual_clip` c > 1 bounds the clipped loss by −cA where A < 0 (Ye et al. 2020, eq. 5). ratio_level="sequence" gives
    all tokens of a response the geometric mean of their ratios (GSPO, Zheng et al. 2025, eq. 7). Both KL estimates
    are of k3's form, taken under π_old where the tokens come from, so that value and gradient are unbiased.

    Metrics, SUMS over tokens: clipfrac counts those whose gradient is cut (ρ > 1+ε_high with A > 0, ρ < 1−ε with
    A < 0; 0 for the surrogates that cut nothing), clipfrac_dual those that dual_clip cuts (there if it is set),
    approx_kl is KL(π_old ‖ π) by k3; ratio_max is a maximum.
    Raises ValueError for another surrogate, direction or level.
    """
    log_ratio = zero_outside(logprobs - old_logprobs, mask)
    match ratio_level:
        case "token":
            log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        case "sequence":
            mean = masked_mean(log_ratio, mask, 1).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            log_ratio = zero_outside(mean[:, None].expand_as(log_ratio), mask)
        case _:
            raise ValueError(f"ratio_level={ratio_level!r}: token or sequence")
    ratio, advantages = log_ratio.exp(), zero_outside(advantages, mask)
    cut = dual_cut = torch.zeros_like(ratio, dtype=torch.bool)
    match surrogate:
        case "clip":
            low, high = 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)
            cut = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
            per_token = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
            if dual_clip is not None:
                bound = -dual_clip * advantages
                dual_cut = (advantages < 0) & (per_token > bound)
                per_token = torch.where(dual_cut, bound, per_token)
        case "kl_penalty":
            per_token = -ratio * advantages + beta_old * _kl_to_old(log_ratio, direction)
        case "ratio":
            per_token = -ratio * advantages
        case own if callable(own):
            per_token = own_losses(own, logprobs, old_logprobs, advantages, mask)
        case "policy_gradient":
            per_token = -zero_outside(logprobs, mask) * advantages
        case _:
            raise ValueError(f"surrogate={surrogate!r}: clip, kl_penalty, ratio or policy_gradient")
    with torch.no_grad():
        metrics = {
            "clipfrac": cut.sum().to(ratio.dtype),
            "approx_kl": masked_sum(_kl_to_old(log_ratio, "old_policy"), mask),
            "ratio_max": zero_outside(ratio, mask).max(),
        }
        if dual_clip is not None:
            metrics["clipfrac_dual"] = dual_cut.sum().to(ratio.dtype)
    return aggregate(per_token, mask, how=aggregation, total=total), metrics


def own_losses(
    loss: TokenLoss,
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    mask: Mask,
) -> Float[Tensor, "B R"]:
    """The losses that a function of the user's gives; what it sees outside the mask is 0. Raises ValueError where they
    are not one per token."""
    given = loss(zero_outside(logprobs, mask), zero_outside(old_logprobs, mask), advantages, mask)
    if not isinstance(given, Tensor) or given.shape != mask.shape:
        seen = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"algo.loss must give one loss per token, {list(mask.shape)}; it gave {seen}")
    return given


def _kl_to_old(log_ratio: Float[Tensor, "B R"], direction: str) -> Float[Tensor, "B R"]:
    """Never negative, and unbiased under π_old in value and gradient."""
    excess = log_ratio.expm1()
    match direction:
        case "old_policy":
            return excess - log_ratio
        case "policy_old":
            return log_ratio.exp() * log_ratio - excess
    raise ValueError(f"direction={direction!r}: old_policy or policy_old")


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
    """½ (V − R)², or with `clip` c the larger of that and ½ (clip(V, V_old ± c) − R)², as in PPO's reference code.

    Metric: value_clipfrac, the number of tokens where the clipped error is the larger: they learn nothing.
    """
    values, old_values, returns = (zero_outside(x, mask) for x in (values, old_values, returns))
    error = (values - returns).square()
    clipped = error
    if clip is not None:
        clipped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    metrics = {"value_clipfrac": (clipped > error).sum().to(values.dtype)}
    return aggregate(torch.max(error, clipped) / 2, mask, how=aggregation, total=total), metrics


def kl_loss(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    mask: Mask,
    *,
    estimator: str,
    aggregation: str,
    total: float,
    old_logprobs: Float[Tensor, "B R"] | None = None,
    limit: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The KL to the reference as a loss: the estimator's value, and a gradient that means something.

    k1: its own gradient has mean 0 (see `kl_estimate`), so it is given k2's, which is unbiased for KL(π ‖ π_ref);
    k2: its own, right; the value is biased;
    k3: its own, as in GRPO (Shao et al. 2024, eq. 4): that of KL(π_ref ‖ π), biased for KL(π ‖ π_ref).
    With `old_logprobs` each estimate is weighted by the live ratio π/π_old, the score-function form: k1's and k3's
    value AND gradient are then unbiased for KL(π ‖ π_ref), off policy too (DeepSeek-V3.2, 2025; TRL's
    `use_bias_correction_kl`). `limit`: see `kl_estimate`. No gradient flows to the reference. For the exact KL,
    `aggregate` a `full_kl`.

    Metric: kl, the SUM of the values over tokens.
    """
    logprobs, ref_logprobs = zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask).detach()
    per_token = kl_estimate(logprobs, ref_logprobs, estimator=estimator, limit=limit)
    if old_logprobs is not None:
        log_ratio = logprobs - zero_outside(old_logprobs, mask).detach()
        per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() * per_token
    elif estimator == "k1":
        k2 = kl_estimate(logprobs, ref_logprobs, estimator="k2", limit=limit)
        per_token = per_token.detach() + k2 - k2.detach()
    loss = aggregate(per_token, mask, how=aggregation, total=total)
    return loss, {"kl": masked_sum(per_token, mask).detach()}


def pairwise_loss(
    scores: Float[Tensor, " N"],
    rank: Int[Tensor, " N"],
    group: Int[Tensor, " N"],
    *,
    average: str = "prompts",
    margin: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """−log σ(r_w − r_l − margin) over all pairs of ranked responses to one prompt (InstructGPT, eq. 1).

    `rank`: smaller is better, equal ranks give no pair. `group`: the prompt's id, as in `group_advantages`.
    average="prompts": the mean over a prompt's pairs, 1/C(K,2) where none is tied (K ranked responses, not K/2),
    then over the prompts that have a pair; "pairs": over all pairs alike, which gives a prompt with more responses
    more weight. No pair at all: 0.

    Metrics: pairs and correct (r_w > r_l) as counts, per_prompt [prompts] in the order of their ids.
    Raises ValueError for another average.
    """
    _, prompt = group.unique(return_inverse=True)
    better, worse = ((prompt[:, None] == prompt) & (rank[:, None] < rank)).nonzero(as_tuple=True)
    gap = scores[better] - scores[worse]
    losses, of = -logsigmoid(gap - margin), prompt[better]
    zeros = scores.new_zeros(int(prompt.max()) + 1)
    pairs = zeros.index_add(0, of, torch.ones_like(losses))
    per_prompt = zeros.index_add(0, of, losses) / pairs.clamp(min=1)
    match average:
        case "prompts":
            loss = per_prompt.sum() / (pairs > 0).sum().clamp(min=1)
        case "pairs":
            loss = losses.sum() / max(1, len(losses))
        case _:
            raise ValueError(f"average={average!r}: prompts or pairs")
    metrics = {"pairs": pairs.sum(), "correct": (gap > 0).sum().to(scores.dtype), "per_prompt": per_prompt.detach()}
    return loss, metrics


def explained_variance(values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], mask: Mask) -> Float[Tensor, ""]:
    """1 − Var(returns − values) / Var(returns) over the mask; 0 where the returns do not vary."""
    variance = masked_var(returns, mask)
    explained = 1 - masked_var(returns - values, mask) / variance
    return torch.where(variance > 0, explained, torch.zeros_like(explained)).detach()
