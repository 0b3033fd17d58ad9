"""An algorithm is a composition of independent choices; each named one is a short YAML in conf/algo."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rlhf_cli.rl.advantages import gae, group_advantages, leave_one_out, reward_to_go, token_rewards
from rlhf_cli.rl.divergences import kl_estimate
from rlhf_cli.rl.losses import aggregate, aggregation_total, kl_loss, policy_loss, value_loss
from rlhf_cli.rl.masked import masked_mean, whiten
from rlhf_cli.rl.rollout import Experience


@dataclass(frozen=True)
class Algorithm:
    """The choices (see conf/algo/ppo.yaml for what each means)."""

    advantage: str
    surrogate: str
    kl: str
    kl_estimator: str
    aggregation: str
    group_scale: str
    whiten: bool
    epsilon: float
    gamma: float
    lam: float
    value_clip: float | None
    entropy: float
    max_length: int
    """R: the constant of `sequence_sum`."""

    def estimate(self, experience: Experience, scores: Float[Tensor, " B"], *, beta: float) -> Experience:
        """Fill in advantages and returns from the rewards of whole responses."""
        rollout, mask = experience.rollout, experience.rollout.mask
        kl = None
        if self.kl == "reward":
            kl = kl_estimate(experience.old_logprobs, experience.ref_logprobs, estimator=self.kl_estimator)
            kl = kl * mask
        if self.advantage in ("group", "leave_one_out") and kl is not None:
            scores = scores - beta * kl.sum(1)
        match self.advantage:
            case "gae":
                rewards = token_rewards(scores, kl, mask, beta=beta)
                advantages, returns = gae(rewards, experience.values, mask, gamma=self.gamma, lam=self.lam)
            case "returns":
                rewards = token_rewards(scores, kl, mask, beta=beta)
                returns = reward_to_go(rewards, mask, gamma=self.gamma)
                advantages = (returns - masked_mean(returns, mask)) * mask
            case "group":
                per_row = group_advantages(scores, rollout.group, scale=self.group_scale)
                advantages = returns = per_row[:, None] * mask
            case _:
                per_row = leave_one_out(scores, rollout.group)
                advantages = returns = per_row[:, None] * mask
        if self.whiten:
            advantages = whiten(advantages, mask)
        return replace(experience, advantages=advantages, returns=returns)

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
            aggregation=self.aggregation,
            total=total,
        )
        if self.kl == "loss" and beta:
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
