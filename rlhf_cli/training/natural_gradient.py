"""TRPO's update: one natural-gradient step of the policy on the whole batch, with the true KL within the region."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.forward import differentiable_twice
from rlhf_cli.engine.read import read
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.rl.trust_region import flat, hessian_product, line_search, natural_step
from rlhf_cli.training.metrics import UpdateStats
from rlhf_cli.training.micro_batches import Lockstep, actor_loss, micro_batches, read_live
from rlhf_cli.training.policy import Policy

FISHER_SHARE = 0.25
"""Share of the rollouts in Fisher-vector products: the curvature needs fewer samples than the gradient (TRPO,
appendix C), and takes the most time."""


def trust_region_step(policy: Policy, reference: Any, batch: Experience, algo: Algorithm) -> UpdateStats:
    """Raises NonFinite where the gradient is not finite; the weights are then as they were."""
    trust, stats = algo.trust_region, UpdateStats()
    assert trust is not None
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    total = algo.total(batch)
    before = copy.deepcopy(policy.model).requires_grad_(False)
    gradient = _gradient(policy, reference, batch, algo, parameters, stats)
    stats.grad_norm, stats.steps = float(gradient.norm()), 1

    def loss_and_kl() -> tuple[float, float]:
        # a step so large that these are not finite is halved like any other
        micros = list(micro_batches(batch, policy.micro_batch_size, lockstep=False))
        losses = (actor_loss(algo, m, read_live(policy, reference, m, algo), total)[0] for m in micros)
        kl = sum(map(float, token_mean_kl(policy, batch, before)))
        loss, kl = distributed.sums((sum(map(float, losses)), kl))
        return loss, kl

    sample = batch.select(slice(0, max(1, round(FISHER_SHARE * len(batch.rollout)))))
    fisher = partial(fisher_product, policy, sample, before)
    step = natural_step(gradient, fisher, delta=trust.delta, damping=trust.damping, cg_steps=trust.cg_steps)
    share, kl = line_search(parameters, step, loss_and_kl, delta=trust.delta, tries=trust.line_search_steps)
    stats.extra |= {"train/trust_region_share": share, "train/trust_region_kl": kl}
    return stats


def _gradient(
    policy: Policy, reference: Any, batch: Experience, algo: Algorithm, parameters: list[Any], stats: UpdateStats
) -> Tensor:
    """Gradient of the surrogate on the whole batch, flattened."""
    lockstep, total = Lockstep.of(policy), algo.total(batch)

    def add() -> None:
        for micro in micro_batches(batch, policy.micro_batch_size, lockstep=False):
            reading = read_live(policy, reference, micro, algo)
            loss, metrics = actor_loss(algo, micro, reading, total, first=True)
            lockstep.check("the actor's loss is", loss)
            stats.first_epoch(micro, reading, sampler=True)
            stats.add(loss, metrics, int(micro.rollout.lengths.sum()))
            loss.backward()

    distributed.all_or_none(add)
    distributed.sum_gradients(parameters)
    gradient = flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    if not torch.isfinite(gradient).all():
        raise NonFinite("the gradient is")
    return gradient


def token_mean_kl(policy: Policy, batch: Experience, before: Any) -> Iterator[Tensor]:
    """KL(π_before ‖ π), exact at each response token: each micro-batch's part of the mean over all tokens.

    Without autocast: at π_before the KL is 0 and its curvature is the difference of nearly equal numbers.
    """
    tokens, temperature = int(batch.rollout.lengths.sum()), policy.generation.temperature
    for micro in micro_batches(batch, policy.micro_batch_size, lockstep=False):
        reading = read(policy.model, micro.rollout, temperature=temperature, reference=before, direction="ref_policy")
        assert reading.full_kl is not None
        yield reading.full_kl.sum() / tokens


def fisher_product(policy: Policy, batch: Experience, before: Any, vector: Tensor) -> Tensor:
    """F · vector, F the Hessian of `token_mean_kl` in the policy's trainable parameters (flat, [n] -> [n])."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    # fused attention kernels have no second derivative, nor have hand-written gradients
    with sdpa_kernel(SDPBackend.MATH), differentiable_twice():
        products = (hessian_product(kl, parameters, vector) for kl in token_mean_kl(policy, batch, before))
        return distributed.summed(sum(products, torch.zeros_like(vector)))
