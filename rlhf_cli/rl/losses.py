"""Losses of policy, critic and reward model: each returns (loss, metrics), metrics detached and summed over tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
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
    """The surrogate objective, negated; with ρ = π/π_old of each token, or of the response (see `log_ratios`):

    clip             −min(ρA, clip(ρ, 1−ε, 1+ε_high) A)   PPO (Schulman et al. 2017, eq. 7); see `clipped`
    cispo            −sg(min(ρ, 1+ε_high)) A log π        CISPO (MiniMax-M1, Chen et al. 2025, eq. 4 and 5)
    kl_penalty       −ρA + β_old · KL(π_old ‖ π)          PPO-KL (PPO, eq. 8); direction="policy_old": KL(π ‖ π_old)
    ratio            −ρA                                  importance sampling, unclipped
    policy_gradient  −A log π                             REINFORCE, A2C
    a function       its losses                           see `TokenLoss`

    sg lets no gradient through. Both KL estimates are of k3's form, taken under π_old where the tokens come from, so
    that value and gradient are unbiased.

    Metrics, SUMS over tokens: clipfrac counts those whose gradient (cispo: whose weight) is cut, clipfrac_dual those
    that dual_clip cuts (there if it is set), approx_kl is KL(π_old ‖ π) by k3, of tokens; ratio_max is a maximum.
    Raises ValueError for another surrogate, direction or level.
    """
    by_token, log_ratio = log_ratios(logprobs, old_logprobs, mask, level=ratio_level)
    ratio, advantages = log_ratio.exp(), zero_outside(advantages, mask)
    high = 1 + (epsilon if epsilon_high is None else epsilon_high)
    cut = dual_cut = torch.zeros_like(ratio, dtype=torch.bool)
    match surrogate:
        case "clip":
            per_token, cut, dual_cut = clipped(ratio, advantages, low=1 - epsilon, high=high, dual_clip=dual_clip)
        case "cispo":
            cut = ratio > high
            per_token = -ratio.detach().clamp(max=high) * advantages * zero_outside(logprobs, mask)
        case "kl_penalty":
            per_token = -ratio * advantages + beta_old * _kl_to_old(log_ratio, direction)
        case "ratio":
            per_token = -ratio * advantages
        case "policy_gradient":
            per_token = -zero_outside(logprobs, mask) * advantages
        case own if callable(own):
            per_token = own_losses(own, logprobs, old_logprobs, advantages, mask)
        case _:
            raise ValueError(f"surrogate={surrogate!r}: clip, cispo, kl_penalty, ratio or policy_gradient")
    metrics = {
        "clipfrac": cut.sum().to(ratio.dtype),
        "approx_kl": masked_sum(_kl_to_old(by_token.detach(), "old_policy"), mask),
        "ratio_max": zero_outside(ratio.detach(), mask).max(),
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


def log_ratios(
    logprobs: Float[Tensor, "B R"], old_logprobs: Float[Tensor, "B R"], mask: Mask, *, level: str
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """log π/π_old of each token, and that of `level`; both 0 outside the mask and cut at ±LOG_RATIO_LIMIT.

    level="sequence" gives all tokens of a response the mean of theirs, so that ρ is (π(o)/π_old(o))^(1/|o|), the
    length-normalised ratio of the whole response (GSPO, Zheng et al. 2025, eq. 7). Raises ValueError for another level.
    """
    exact = zero_outside(logprobs - old_logprobs, mask)
    by_token = exact.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    match level:
        case "token":
            return by_token, by_token
        case "sequence":
            mean = masked_mean(exact, mask, 1).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            return by_token, zero_outside(mean[:, None].expand_as(exact), mask)
    raise ValueError(f"ratio_level={level!r}: token or sequence")


def clipped(
    ratio: Float[Tensor, "B R"], advantages: Float[Tensor, "B R"], *, low: float, high: float, dual_clip: float | None
) -> tuple[Float[Tensor, "B R"], Bool[Tensor, "B R"], Bool[Tensor, "B R"]]:
    """PPO's clipped loss of each token; (loss, where the clip cuts the gradient, where dual_clip does).

    The clip cuts it where ρ > high and A > 0, and where ρ < low and A < 0. high ≠ 2 − low is clip-higher (DAPO, Yu et
    al. 2025, eq. 8). `dual_clip` c > 1 bounds the loss by −cA where A < 0 (Ye et al. 2020, eq. 5).
    """
    per_token = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    cut = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
    if dual_clip is None:
        return per_token, cut, torch.zeros_like(cut)
    bound = -dual_clip * advantages
    dual_cut = (advantages < 0) & (per_token > bound)
    return torch.where(dual_cut, bound, per_token), cut, dual_cut


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
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The KL to the reference as a loss: the estimator's value, and a gradient that means something.

    k1: its own gradient has mean 0 (see `kl_estimate`), so it is given k2's, which is unbiased for KL(π ‖ π_ref);
    k2: its own, right; the value is biased;
    k3: its own, as in GRPO (Shao et al. 2024, eq. 4): that of KL(π_ref ‖ π), biased for KL(π ‖ π_ref).
    With `old_logprobs` each estimate is weighted by the live ratio π/π_old, the score-function form: k1's and k3's
    value AND gradient are then unbiased for KL(π ‖ π_ref), off policy too (DeepSeek-V3.2 2025, sec. 3.1; TRL's
    `use_bias_correction_kl`). No gradient flows to the reference. For the exact KL,
    `aggregate` a `full_kl`.

    Metric: kl, the SUM of the values over tokens.
    """
    logprobs, ref_logprobs = zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask).detach()
    per_token = kl_estimate(logprobs, ref_logprobs, estimator=estimator)
    if old_logprobs is not None:
        log_ratio = logprobs - zero_outside(old_logprobs, mask).detach()
        per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp() * per_token
    elif estimator == "k1":
        k2 = kl_estimate(logprobs, ref_logprobs, estimator="k2")
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

    Metrics: pairs and correct (r_w > r_l; a tie is half of one) as counts, per_prompt [prompts] in the order of their
    ids.
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
    metrics = {
        "pairs": pairs.sum(),
        "correct": ((gap > 0).sum() + (gap == 0).sum() / 2).to(scores.dtype),
        "per_prompt": per_prompt.detach(),
    }
    return loss, metrics


def explained_variance(values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], mask: Mask) -> Float[Tensor, ""]:
    """1 − Var(returns − values) / Var(returns) over the mask; 0 where the returns do not vary."""
    variance = masked_var(returns, mask)
    explained = 1 - masked_var(returns - values, mask) / variance
    return torch.where(variance > 0, explained, torch.zeros_like(explained)).detach()
