"""One batch of experience: epochs × minibatches × micro-batches of updates."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.dropout import train_mode
from rlhf_cli.engine.finite import NonFinite, check_finite
from rlhf_cli.engine.gradients import in_place
from rlhf_cli.engine.read import response_values
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.randomness import permutation
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.training.clock import phase
from rlhf_cli.training.metrics import UpdateStats
from rlhf_cli.training.micro_batches import Lockstep, actor_loss, micro_batches, read_live
from rlhf_cli.training.natural_gradient import trust_region_step
from rlhf_cli.training.policy import Critic, Policy


@phase("update")
def optimize(
    policy: Policy, critic: Critic | None, reference: Any, batch: Experience, algo: Algorithm, step: int
) -> dict[str, float]:
    """Train on one batch; returns the metrics of the update, averaged over tokens or optimizer steps."""
    stats = UpdateStats()
    with learning(policy, critic):
        if algo.trust_region is not None:
            stats = trust_region_step(policy, reference, batch, algo)
        for epoch, number, minibatch in minibatches(batch, algo, seed=policy.generation.seed, step=step):
            if algo.trust_region is None:
                before, at = stats, epoch * algo.minibatches + number
                shared = critic.head_on_policy if critic else None
                stats = actor_gradients(policy, reference, minibatch, algo, stats, shared, epoch=epoch, first=at == 0)
                if algo.target_kl is not None and stats.kl_since(before) > algo.target_kl:
                    stats = replace(stats, loss=before.loss, value_loss=before.value_loss)
                    _optimizer(policy).zero_grad()
                    break
                stats.mix_loss += mix_gradients(policy, step, at) if algo.ptx else 0.0
                with named("the actor's loss is", stats.loss):
                    stats.grad_norm += _optimizer(policy).step(step)
                stats.steps += 1
            # the critic after the policy: only one of them holds gradients at a time
            if critic is not None and critic.optimizer is not None:
                stats = critic_gradients(policy, critic, minibatch, algo, stats)
                with named("the critic's loss is", stats.value_loss):
                    critic.optimizer.step(step)
            stats.updates += 1
    if algo.target_kl is not None:
        stats.extra["train/updates"] = float(stats.updates)
    stats.extra["train/lr"] = _optimizer(policy).learning_rate(step)
    return stats.of_all().metrics(algo, has_critic=critic is not None)


def minibatches(batch: Experience, algo: Algorithm, *, seed: int, step: int) -> Iterator[tuple[int, int, Experience]]:
    """(epoch, number in it, minibatch), reshuffled every epoch."""
    count = len(batch.rollout)
    size = count // algo.minibatches
    for epoch in range(algo.epochs):
        order = permutation(seed, step, epoch, count)
        for number, at in enumerate(range(0, count, size)):
            minibatch = batch.select(order[at : at + size])
            yield epoch, number, minibatch.select(minibatch.rollout.cheapest_order())


def actor_gradients(
    policy: Policy,
    reference: Any,
    minibatch: Experience,
    algo: Algorithm,
    before: UpdateStats,
    head: nn.Module | None,
    *,
    epoch: int,
    first: bool,
) -> UpdateStats:
    """The policy's gradients of a minibatch, and `before` with its metrics added.

    `head`: a value head on the policy's trunk, whose loss comes from the same forward pass. `first`: the policy is
    still the one that sampled, so its own log-probs are the old ones, whatever the micro-batches' layout and dtype.
    """
    lockstep, total = Lockstep.of(policy), algo.total(minibatch)

    def work(rows: int) -> UpdateStats:  # safe to retry after running out of memory
        stats = copy.copy(before)
        _optimizer(policy).zero_grad()
        with in_place(not lockstep.on):
            for micro in micro_batches(minibatch, rows, lockstep=lockstep.on):
                reading = read_live(policy, reference, micro, algo, head)
                loss, metrics = actor_loss(algo, micro, reading, total, first=first)
                lockstep.check("the actor's loss is", loss)
                if epoch == 0:
                    stats.first_epoch(micro, reading, sampler=first)
                stats.add(loss, metrics, int(micro.rollout.lengths.sum()))
                if reading.values is not None:
                    loss = loss + value_term(algo, micro, reading.values, total, stats, lockstep)
                loss.backward()
        return stats

    return lockstep.fit(policy, work)


def critic_gradients(
    policy: Policy, critic: Critic, minibatch: Experience, algo: Algorithm, before: UpdateStats
) -> UpdateStats:
    """The critic's gradients of a minibatch, in the same way."""
    lockstep, total, optimizer = Lockstep.of(policy), algo.total(minibatch), critic.optimizer
    assert optimizer is not None

    def work(rows: int) -> UpdateStats:
        stats = copy.copy(before)
        optimizer.zero_grad()
        with in_place(not lockstep.on):
            if minibatch.live_values is not None and before.updates == 0 and rows == policy.micro_batch_size:
                value_term(algo, minibatch, minibatch.live_values, total, stats, lockstep).backward()
                return stats
            for micro in micro_batches(minibatch, rows, lockstep=lockstep.on):
                with policy.compute.autocast():
                    values = response_values(critic.model, micro.rollout)
                value_term(algo, micro, values, total, stats, lockstep).backward()
        return stats

    return lockstep.fit(policy, work)


def value_term(
    algo: Algorithm, micro: Experience, values: Tensor, total: float, stats: UpdateStats, lockstep: Lockstep
) -> Tensor:
    """The weighted value loss of a micro-batch."""
    loss, metrics = algo.critic_loss(micro, values, total=total)
    lockstep.check("the critic's loss is", loss)
    stats.add_value(loss, metrics, int(micro.rollout.lengths.sum()))
    return algo.value * loss


def mix_gradients(policy: Policy, step: int, number: int) -> float:
    """Add the gradient of the pretraining mix to the `number`-th update of a step; its loss in this process."""
    assert policy.mix is not None
    loss = policy.mix.loss(policy.model, policy.compute, step, number) / distributed.world()  # the same on each
    Lockstep.of(policy).check("the pretraining loss is", loss)
    loss.backward()
    return float(loss.detach())


@contextmanager
def named(what: str, loss: Any) -> Iterator[None]:
    """Where a gradient turns out not to be finite, the loss is blamed if it is not finite either."""
    try:
        yield
    except NonFinite:
        check_finite(what, torch.as_tensor(loss))
        raise


@contextmanager
def learning(policy: Policy, critic: Critic | None) -> Iterator[None]:
    """Inside, the models that learn are in train mode."""
    models = [policy.model, *([critic.model] if critic and critic.optimizer else [])]
    for model in models:
        train_mode(model, True)
    try:
        yield
    finally:
        for model in models:
            train_mode(model, False)


def _optimizer(policy: Policy) -> Any:
    assert policy.optimizer is not None, "this policy is for evaluation only: it has no optimizer"
    return policy.optimizer
