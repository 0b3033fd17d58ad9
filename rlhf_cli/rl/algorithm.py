"""An algorithm is a composition of independent choices; each named one is a short YAML in conf/algo."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rlhf_cli.rl.advantages import gae, group_advantages, leave_one_out, reward_to_go, token_rewards
from rlhf_cli.rl.divergences import kl_estimate
from rlhf_cli.rl.losses import aggregate, aggregation_total, kl_loss, policy_loss, value_loss
from rlhf_cli.rl.masked import Mask, masked_mean, whiten, zero_outside
from rlhf_cli.rl.rollout import Experience


@dataclass(frozen=True)
class Algorithm:
    """The choices (see conf/algo/ppo.yaml for what each means)."""

    advantage: str
    baseline: str
    reward_to_go: bool
    surrogate: str
    kl: str
    kl_estimator: str
    kl_direction: str
    aggregation: str
    group_scale: str
    whiten: bool
    epsilon: float
    epsilon_high: float | None
    beta_old_direction: str
    gamma: float
    lam: float
    value_target: str
    value_clip: float | None
    entropy: float
    max_length: int
    """R: the constant of `sequence_sum`."""

    @property
    def full_kl(self) -> bool:
        """Whether the KL to the reference is the exact one, over the whole vocabulary."""
        return self.kl != "none" and self.kl_estimator == "full"

    def estimate(
        self,
        experience: Experience,
        scores: Float[Tensor, " B"],
        *,
        beta: float,
        full_kl: Float[Tensor, "B R"] | None = None,
        paid: Float[Tensor, "B R"] | None = None,
    ) -> Experience:
        """Fill in advantages and returns from the rewards of whole responses; `paid` early is part of them."""
        mask = experience.rollout.mask
        kl = None
        if self.kl == "reward":
            per_token = full_kl if full_kl is not None else self._kl(experience)
            kl = zero_outside(per_token, mask)
        advantages, returns = self._advantages(experience, scores, kl, mask, beta=beta, paid=paid)
        if self.whiten:
            advantages = whiten(advantages, mask)
        return replace(experience, advantages=advantages, returns=returns)

    def _kl(self, experience: Experience) -> Tensor:
        return kl_estimate(experience.old_logprobs, experience.ref_logprobs, estimator=self.kl_estimator)

    def _advantages(
        self,
        experience: Experience,
        scores: Tensor,
        kl: Tensor | None,
        mask: Mask,
        *,
        beta: float,
        paid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(advantages, what the critic regresses on)."""
        match self.advantage:
            case "gae":
                rewards = token_rewards(scores, kl, mask, beta=beta, paid=paid)
                advantages, returns = gae(rewards, experience.values, mask, gamma=self.gamma, lam=self.lam)
                return advantages, self._value_target(experience, rewards, returns, scores, mask)
            case "returns":
                rewards = token_rewards(scores, kl, mask, beta=beta, paid=paid)
                returns = reward_to_go(rewards, mask, gamma=self.gamma)
                weight = returns if self.reward_to_go else returns[:, :1].expand_as(returns)
                return zero_outside(weight - self._baseline(experience, weight, mask), mask), returns
        if kl is not None:
            scores = scores - beta * kl.sum(1)
        group = experience.rollout.group
        if self.advantage == "group":
            per_row = group_advantages(scores, group, scale=self.group_scale)
        else:
            per_row = leave_one_out(scores, group)
        advantages = per_row[:, None] * mask
        return advantages, advantages

    def _baseline(self, experience: Experience, returns: Tensor, mask: Mask) -> Tensor:
        match self.baseline:
            case "batch_mean":
                return masked_mean(returns, mask)
            case "critic":
                return experience.values
        return returns.new_zeros(())

    def _value_target(
        self, experience: Experience, rewards: Tensor, lambda_return: Tensor, scores: Tensor, mask: Mask
    ) -> Tensor:
        match self.value_target:
            case "final_score":
                return scores[:, None] * mask
            case "td0":
                return gae(rewards, experience.values, mask, gamma=self.gamma, lam=0.0)[1]
        return lambda_return

    def total(self, experience: Experience) -> float:
        """What a minibatch's losses are divided by, so that its micro-batches' losses add up."""
        constant = float(len(experience.rollout) * self.max_length)
        return aggregation_total(experience.rollout.mask, how=self.aggregation, constant=constant)

    def actor_loss(
        self,
        experience: Experience,
        logprobs: Float[Tensor, "B R"],
        entropies: Float[Tensor, "B R"],
        *,
        beta: float,
        total: float,
        beta_old: float = 0.0,
        full_kl: Float[Tensor, "B R"] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Surrogate, the KL where it sits in the loss, and the entropy bonus."""
        mask = experience.rollout.mask
        loss, metrics = policy_loss(
            logprobs,
            experience.old_logprobs,
            experience.advantages,
            mask,
            surrogate=self.surrogate,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            beta_old=beta_old,
            direction=self.beta_old_direction,
            aggregation=self.aggregation,
            total=total,
        )
        if self.kl == "loss" and beta:
            if self.full_kl:
                assert full_kl is not None
                leash = aggregate(full_kl, mask, how=self.aggregation, total=total)
            else:
                leash, _ = kl_loss(
                    logprobs,
                    experience.ref_logprobs,
                    mask,
                    estimator=self.kl_estimator,
                    aggregation=self.aggregation,
                    total=total,
                )
            loss = loss + beta * leash
        if self.entropy:
            loss = loss - self.entropy * aggregate(entropies, mask, how=self.aggregation, total=total)
        return loss, metrics

    def critic_loss(
        self, experience: Experience, values: Float[Tensor, "B R"], *, total: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return value_loss(
            values,
            experience.values,
            experience.returns,
            experience.rollout.mask,
            clip=self.value_clip,
            aggregation=self.aggregation,
            total=total,
        )
