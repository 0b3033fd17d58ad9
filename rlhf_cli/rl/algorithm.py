"""An algorithm is a composition of independent choices; each named one is a short YAML in conf/algo."""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rlhf_cli.rl.advantages import gae, group_advantages, leave_one_out, reward_to_go, token_rewards
from rlhf_cli.rl.controllers import FixedKL
from rlhf_cli.rl.divergences import kl_estimate
from rlhf_cli.rl.losses import TokenLoss, aggregate, aggregation_total, kl_loss, policy_loss, value_loss
from rlhf_cli.rl.masked import Mask, masked_mean, masked_sum, whiten, zero_outside
from rlhf_cli.rl.rollout import Experience


@dataclass(frozen=True)
class TrustRegion:
    """Keys of TRPO: see conf/algo/trpo.yaml."""

    delta: float
    damping: float
    cg_steps: int
    line_search_steps: int


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The choices and every coefficient (see conf/algo/ppo.yaml for what each means). The defaults are PPO's.

    Nothing changes from step to step but the values of the two controllers.
    """

    advantage: str = "gae"
    baseline: str = "batch_mean"
    reward_to_go: bool = True
    group_size: int = 1
    group_scale: str = "std"
    whiten: bool = True
    gamma: float = 1.0
    lam: float = 0.95
    value_target: str = "lambda_return"
    filter: str = "none"
    refill_tries: int = 0

    surrogate: str | TokenLoss = "clip"
    ratio_level: str = "token"
    aggregation: str = "sequence_mean"
    max_length: int = 1
    """R: the constant of `sequence_sum`."""
    epsilon: float = 0.2
    epsilon_high: float | None = None
    dual_clip: float | None = None
    value_clip: float | None = None
    value: float = 1.0
    entropy: float = 0.0
    ptx: float = 0.0

    kl: str = "reward"
    kl_estimator: str = "k1"
    kl_direction: str = "policy_ref"
    kl_correction: bool = False
    """Of the KL in the loss: weighted by π/π_old, so that it is unbiased after the first update too."""
    beta: FixedKL = field(default_factory=lambda: FixedKL(0.0))
    """The weight of the KL to the reference."""
    beta_old: FixedKL = field(default_factory=lambda: FixedKL(0.0))
    """That of the KL to the policy that sampled, in PPO-KL."""
    beta_old_direction: str = "old_policy"

    epochs: int = 1
    minibatches: int = 1
    target_kl: float | None = None
    """Nats a token from the policy that sampled, beyond which the rest of the epochs is left out."""
    old_logprobs: str = "recompute"
    trust_region: TrustRegion | None = None
    """The policy takes one natural-gradient step on the whole batch; the minibatches are the critic's."""

    @property
    def compares_groups(self) -> bool:
        """Advantages are those among the responses to one prompt."""
        return self.advantage in ("group", "leave_one_out")

    @property
    def recompute(self) -> bool:
        """Old log-probs come from a forward pass of training, not from sampling: the first ratio is exactly 1."""
        return self.old_logprobs == "recompute"

    def full_kl(self, where: str) -> str | None:
        """The direction of the exact KL over the whole vocabulary, if it sits there (reward | loss), else None."""
        return self.kl_direction if self.kl == where and self.kl_estimator == "full" else None

    def estimate(
        self, batch: Experience, scores: Float[Tensor, " B"], early: Float[Tensor, "B R"] | None = None
    ) -> Experience:
        """Fill in advantages and returns from the rewards of whole responses; `early`: what of them is paid before the
        last token.

        `whiten` normalises the advantages over the response tokens of the whole batch. With advantage="returns" and
        kl="reward" that is REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): (A − mean)/std of
        A_t = r − β Σ_{i≥t} log(π_old/π_ref)_i.
        """
        mask = batch.rollout.mask
        kl = None
        if self.kl == "reward":
            kl = batch.full_kl if batch.full_kl is not None else self._kl(batch)
            kl = zero_outside(kl, mask)
        advantages, returns = self._advantages(batch, scores, kl, mask, early)
        if self.whiten:
            advantages = whiten(advantages, mask)
        return replace(batch, advantages=advantages, returns=returns)

    def _kl(self, batch: Experience) -> Tensor:
        return kl_estimate(batch.old_logprobs, batch.ref_logprobs, estimator=self.kl_estimator)

    def _advantages(
        self, batch: Experience, scores: Tensor, kl: Tensor | None, mask: Mask, early: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(advantages, what the critic regresses on)."""
        match self.advantage:
            case "gae":
                rewards = token_rewards(scores, kl, mask, beta=self.beta.value, paid=early)
                assert batch.values is not None  # the schema refuses GAE without a critic
                advantages, returns = gae(rewards, batch.values, mask, gamma=self.gamma, lam=self.lam)
                return advantages, self._value_target(batch.values, rewards, returns, scores, mask)
            case "returns":
                rewards = token_rewards(scores, kl, mask, beta=self.beta.value, paid=early)
                returns = reward_to_go(rewards, mask, gamma=self.gamma)
                weight = returns if self.reward_to_go else returns[:, :1].expand_as(returns)
                return zero_outside(weight - self._baseline(batch, weight, mask), mask), returns
        if kl is not None:
            scores = scores - self.beta.value * kl.sum(1)
        group = batch.rollout.group
        if self.advantage == "group":
            per_row = group_advantages(scores, group, scale=self.group_scale)
        else:
            per_row = leave_one_out(scores, group)
        advantages = per_row[:, None] * mask
        return advantages, advantages

    def _baseline(self, batch: Experience, returns: Tensor, mask: Mask) -> Tensor:
        match self.baseline:
            case "batch_mean":
                return masked_mean(returns, mask)
            case "critic":
                assert batch.values is not None  # the schema refuses it without a critic
                return batch.values
        return returns.new_zeros(())

    def _value_target(
        self, values: Tensor, rewards: Tensor, lambda_return: Tensor, scores: Tensor, mask: Mask
    ) -> Tensor:
        match self.value_target:
            case "final_score":
                return scores[:, None] * mask
            case "td0":
                return gae(rewards, values, mask, gamma=self.gamma, lam=0.0)[1]
        return lambda_return

    def total(self, batch: Experience) -> float:
        """What a minibatch's losses are divided by, so that its micro-batches' losses add up."""
        constant = float(len(batch.rollout) * self.max_length)
        return aggregation_total(batch.rollout.host_mask, how=self.aggregation, constant=constant)

    def actor_loss(
        self,
        batch: Experience,
        logprobs: Float[Tensor, "B R"],
        entropies: Float[Tensor, "B R"],
        *,
        total: float,
        full_kl: Float[Tensor, "B R"] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Surrogate, the KL penalty where it sits in the loss, and the entropy bonus."""
        mask = batch.rollout.mask
        assert batch.advantages is not None
        loss, metrics = policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            mask,
            surrogate=self.surrogate,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            dual_clip=self.dual_clip,
            beta_old=self.beta_old.value,
            direction=self.beta_old_direction,
            ratio_level=self.ratio_level,
            aggregation=self.aggregation,
            total=total,
        )
        if self.kl_in_loss:
            penalty, measured = self._kl_penalty(batch, logprobs, full_kl, total)
            loss, metrics = loss + self.beta.value * penalty, metrics | measured
        if self.entropy:
            loss = loss - self.entropy * aggregate(entropies, mask, how=self.aggregation, total=total)
        return loss, metrics

    @property
    def kl_in_loss(self) -> bool:
        return self.kl == "loss" and self.beta.value > 0

    def _kl_penalty(
        self, batch: Experience, logprobs: Tensor, full_kl: Tensor | None, total: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The KL to the reference as a term of the loss, and its sum over tokens."""
        mask = batch.rollout.mask
        if self.full_kl("loss"):
            assert full_kl is not None
            penalty = aggregate(full_kl, mask, how=self.aggregation, total=total)
            return penalty, {"kl": masked_sum(full_kl, mask).detach()}
        return kl_loss(
            logprobs,
            batch.ref_logprobs,
            mask,
            estimator=self.kl_estimator,
            aggregation=self.aggregation,
            total=total,
            old_logprobs=batch.old_logprobs if self.kl_correction else None,
        )

    def critic_loss(
        self, batch: Experience, values: Float[Tensor, "B R"], *, total: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's error, which `value` is the weight of."""
        assert batch.values is not None
        assert batch.returns is not None
        return value_loss(
            values,
            batch.values,
            batch.returns,
            batch.rollout.mask,
            clip=self.value_clip,
            aggregation=self.aggregation,
            total=total,
        )

    def adapt(self, *, kl: float, kl_old: float, rollouts: int) -> None:
        """Move the two betas after an update. `kl`: to the reference, nats a response; `kl_old`: to the policy that
        sampled, nats a token."""
        self.beta.update(kl, rollouts)
        self.beta_old.update(kl_old, rollouts)

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self.beta.state_dict(), "kl_old": self.beta_old.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beta.load_state_dict(state["kl"])
        self.beta_old.load_state_dict(state["kl_old"])
