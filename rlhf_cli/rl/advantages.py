"""Rewards of tokens, advantages and returns. B rollouts, R response tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_cli.rl.masked import Mask, zero_outside


def token_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B R"] | None,
    mask: Mask,
    *,
    beta: float,
    paid: Float[Tensor, "B R"] | None = None,
) -> Float[Tensor, "B R"]:
    """−beta·kl on every response token, and the score on the last one (Ziegler et al. 2019, eq. 2).

    `paid`: what of the score was paid on earlier tokens (a process reward); the last one gets the rest.

    The last token is the EOS where there is one: it is an action and gets its reward. TRL's PPO puts the score one
    place further where there is room, and so bootstraps from a value that no action follows; here, as in every
    other peer, it stays inside. A row without a token gets no score.
    """
    inside = mask.bool()
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device) * inside
    last = inside & (order == order.amax(1, keepdim=True))
    rest = scores if paid is None else scores - paid.sum(1)
    rewards = torch.where(last, rest[:, None], torch.zeros_like(rest[:, None]))
    rewards = rewards if paid is None else rewards + paid
    return rewards if kl is None else rewards - beta * zero_outside(kl, mask)


def gae(
    rewards: Float[Tensor, "B R"], values: Float[Tensor, "B R"], mask: Mask, *, gamma: float, lam: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) and the λ-returns, advantages + values.

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γλ A_{t+1}

    V and A are 0 after the last token: a response ends there, cut off or not. (The (1−λ)Σ form of the papers is
    for infinite horizons; at a finite one it loses weight. The δ recursion is right for both.) λ=0 is the one-step
    TD error, λ=1 Monte Carlo minus value. A masked token inside a response is skipped: what follows is carried over
    (as verl and NeMo-RL do; OpenRLHF discounts across it). Both outputs are 0 outside the mask.
    """
    inside = mask.bool()
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(inside[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(inside[:, t], values[:, t], next_value)
        advantages[:, t] = advantage
    advantages = zero_outside(advantages, mask)
    return advantages, advantages + values


def reward_to_go(rewards: Float[Tensor, "B R"], mask: Mask, *, gamma: float) -> Float[Tensor, "B R"]:
    """Σ_{k≥t} γ^{k−t} r_k, REINFORCE's return (Williams 1992): GAE with λ=1 and no values; 0 outside the mask.

    Its last term is γ^{T−t} r_T: the discount counts from t, not from the start.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def group_advantages(
    scores: Float[Tensor, " B"], group: Int[Tensor, " B"], *, scale: str, eps: float = 1e-6
) -> Float[Tensor, " B"]:
    """(r − mean) / (std + eps) within each group (GRPO, Shao et al. 2024, sec. 4.1.2); scale="none": Dr. GRPO.

    `group[i]` is any id shared by the responses to one prompt; they need not be neighbours, and may be in the host's
    memory. Bessel's std (ddof 1) and eps 1e-6, as verl has it (TRL: 1e-4, OpenRLHF: 1e-9). A group of equal rewards
    gets exactly 0 in any dtype: it is found by max == min, since a rounded mean is off by an ulp and a tiny denominator
    blows that up. A group of one says nothing about its reward and gets 0 too, where verl would let the raw score
    through. Sums run in float32 at least: in float16 the square of a small spread would be 0.

    Raises ValueError for another scale.
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale={scale!r}: std or none")
    _, inverse, counts = (x.to(scores.device) for x in group.unique(return_inverse=True, return_counts=True))
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    zeros = exact.new_zeros(len(counts))
    centred = exact - (zeros.index_add(0, inverse, exact) / counts)[inverse]
    if scale == "std":
        variance = zeros.index_add(0, inverse, centred.square()) / (counts - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)[inverse]
    return centred.masked_fill(constant_groups(scores, group), 0).to(scores.dtype)


def constant_groups(scores: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """True where all rewards of the row's group are equal: nothing to learn from (DAPO, Yu et al. 2025, eq. 11)."""
    ids, inverse = (x.to(scores.device) for x in group.unique(return_inverse=True))
    zeros = scores.new_zeros(len(ids))
    high = zeros.scatter_reduce(0, inverse, scores, "amax", include_self=False)
    low = zeros.scatter_reduce(0, inverse, scores, "amin", include_self=False)
    return (high == low)[inverse]


def leave_one_out(scores: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """r_i minus the mean of the others in its group (RLOO, Ahmadian et al. 2024, eq. 8); 0 for a group of one.

    With n in the group that is n/(n−1) times r_i minus the mean of all.
    """
    _, inverse, counts = (x.to(scores.device) for x in group.unique(return_inverse=True, return_counts=True))
    n = counts[inverse]
    return (group_advantages(scores, group, scale="none") * n / (n - 1).clamp(min=1)).to(scores.dtype)
