"""The algorithm as in a paper: sample, score, evaluate, estimate, update."""

from typing import Any

from rlhf_cli.engine.finite import check_finite, evidence
from rlhf_cli.rewards.scorer import Scorer
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.training.experience import evaluate
from rlhf_cli.training.metrics import describe, merged
from rlhf_cli.training.policy import Critic, Policy
from rlhf_cli.training.rollouts import Rollouts, TrainingPrompts, collect, early_rewards
from rlhf_cli.training.update import optimize


def train_step(
    policy: Policy,
    reference: Any,
    critic: Critic | None,
    data: TrainingPrompts,
    reward: Scorer,
    algo: Algorithm,
    step: int,
) -> tuple[dict[str, float], Rollouts]:
    """One step of training; (its metrics, what it learned from).

    Raises NonFinite where a reward, loss or gradient is not finite: no weight has changed then.
    """
    rollouts = collect(policy, data, reward, step, refill_tries=algo.refill_tries)
    with evidence(rollouts=rollouts):
        early = early_rewards(reward, policy, rollouts)
        batch = evaluate(rollouts.rollout, policy, reference, critic, algo)
        earned, shares = reward.learned_from(rollouts.rewards, rollouts.rollout.group, grouped=algo.compares_groups)
        batch = algo.estimate(batch, earned.to(policy.compute.device), early)
        check_finite("an advantage is", batch.advantages, batch.rollout.mask, batch=batch)
        stats = describe(rollouts, batch, algo, shares)
        with evidence(batch=batch):
            stats = merged(stats, optimize(policy, critic, reference, batch, algo, step))
    algo.adapt(kl=stats["train/kl"], kl_old=stats["train/approx_kl"], rollouts=len(rollouts))
    return stats, rollouts
