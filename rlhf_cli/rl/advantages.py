"""Rewards of tokens, advantages and returns. B rollouts, R response tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_cli.rl.masked import masked_sum

Mask = Bool[Tensor, "B R"] | Float[Tensor, "B R"]


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B R"] | None, mask: Mask, *, beta: float
) -> Float[Tensor, "B R"]:
    """−beta·kl on every response token, and the score on the last one (Ziegler et al. 2019, eq. 2).

    The last token is the EOS where there is one: it is an action and gets its reward. Peers that put the
    score one past the end (TRL's PPO) bootstrap from a value no action follows; here it stays inside.
    """
    rewards = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    if kl is not None:
        rewards = (-beta * kl).masked_fill(~mask.bool(), 0)
    lengths = mask.long().sum(1)
    rows = lengths > 0
    last = torch.zeros_like(rewards)
    last[rows.nonzero().squeeze(1), lengths[rows] - 1] = scores[rows].to(rewards.dtype)
    return rewards + last


def gae(
    rewards: Float[Tensor, "B R"], values: Float[Tensor, "B R"], mask: Mask, *, gamma: float, lam: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) and returns = advantages + values.

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γλ A_{t+1}; V is 0 after the last token. A masked token inside a
    response is skipped: what follows it is carried over. Both outputs are 0 outside the mask.
    """
    inside = mask.bool()
    rewards, values = rewards.masked_fill(~inside, 0), values.masked_fill(~inside, 0)
    advantage, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        here = inside[:, t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~here, 0)
    return advantages, (advantages + values).masked_fill(~inside, 0)


def reward_to_go(rewards: Float[Tensor, "B R"], mask: Mask, *, gamma: float) -> Float[Tensor, "B R"]:
    """Σ_{k≥t} γ^{k−t} r_k (REINFORCE with reward-to-go): GAE with λ=1 and no values."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def group_advantages(
    scores: Float[Tensor, " B"], group: Int[Tensor, " B"], *, scale: str, eps: float = 1e-6
) -> Float[Tensor, " B"]:
    """(r − mean) / (std + eps) within each group (GRPO, Shao et al. 2024); scale="none": Dr. GRPO.

    std with ddof 1. A group of equal rewards, and so a group of one, gets exactly 0 in any dtype: it is found by
    max == min, since in float32 the mean is off by an ulp and a tiny denominator blows that up.
    """
    ids, inverse, counts = group.unique(return_inverse=True, return_counts=True)
    zeros = scores.new_zeros(len(ids))
    mean = zeros.index_add(0, inverse, scores) / counts
    centred = scores - mean[inverse]
    high = zeros.scatter_reduce(0, inverse, scores, "amax", include_self=False)
    low = zeros.scatter_reduce(0, inverse, scores, "amin", include_self=False)
    if scale == "std":
        variance = zeros.index_add(0, inverse, centred.square()) / (counts - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)[inverse]
    return centred.masked_fill((high == low)[inverse], 0)


def leave_one_out(scores: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """r_i minus the mean of the others in its group (RLOO, Ahmadian et al. 2024); 0 for a group of one."""
    _, inverse, counts = group.unique(return_inverse=True, return_counts=True)
    size = counts[inverse]
    return group_advantages(scores, group, scale="none") * size / (size - 1).clamp(min=1)


def sequence_returns(rewards: Float[Tensor, "B R"], mask: Mask) -> Float[Tensor, " B"]:
    """The sum of a response's rewards."""
    return masked_sum(rewards, mask, 1)
