"""One batch of experience, epochs × minibatches × micro-batches of updates."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_cli.engine.casts import forget_casts
from rlhf_cli.engine.dropout import train_mode
from rlhf_cli.engine.finite import NonFinite, check_finite
from rlhf_cli.engine.forward import differentiable_twice
from rlhf_cli.engine.gradients import in_place
from rlhf_cli.engine.memory import Memory
from rlhf_cli.engine.read import Reading, read, response_values
from rlhf_cli.engine.value_head import SharedCritic
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.randomness import permutation
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.rl.trust_region import flat, hessian_product, line_search, natural_step
from rlhf_cli.training import distributed
from rlhf_cli.training.compute import Compute


@dataclass
class Learner:
    """A model and its optimizer."""

    model: Any
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    also: list[torch.nn.Parameter] = field(default_factory=list)
    """Parameters outside the model that learn with it: a shared critic's head."""
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [*self.model.parameters(), *self.also]
        # fused: one pass over each parameter, and no temporary copies of all of them; it takes no split ones
        fused = not distributed.is_split(self.model)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused, foreach=False
        )

    def step(self, scale: float) -> float:
        """Clip, check, update at `scale` × the learning rate; returns the gradient norm before the clip."""
        distributed.sum_gradients(self.parameters)
        norm = distributed.gradient_norm(self.parameters)
        if not torch.isfinite(norm):
            named = self.model.named_parameters()
            bad = [name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFinite("the gradient is", parameters=bad)
        distributed.clip_gradients(self.parameters, self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * scale
        self.optimizer.step()
        forget_casts()
        self.forget()
        return float(norm)

    def memory(self) -> dict[str, Any]:
        """The optimizer's state, put together from all processes."""
        return distributed.whole(self.optimizer.state_dict())

    def remember(self, state: dict[str, Any]) -> None:
        """Take up what `memory` gave, on however many processes that was."""
        parts = {i: distributed.split_like(slots, self.parameters[i]) for i, slots in state["state"].items()}
        # this process's kind of step, and not the saved one, says on which device the optimizer counts
        kinds = [{key: group[key] for key in ("fused", "foreach")} for group in self.optimizer.param_groups]
        groups = [group | kind for group, kind in zip(state["param_groups"], kinds, strict=True)]
        self.optimizer.load_state_dict({"state": parts, "param_groups": groups})

    def forget(self) -> None:
        """Drop the gradient."""
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class TrustRegion:
    """Keys of TRPO: see conf/algo/trpo.yaml."""

    delta: float
    damping: float
    cg_steps: int
    line_search_steps: int


def lr_scale(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate's factor at a step (from 1): linear warm-up, then the schedule, which comes to 0 after the
    last of the `steps`."""
    if step <= warmup:
        return step / warmup
    done = (step - warmup - 1) / max(1, steps - warmup)
    match schedule:
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case _:
            return 1.0


@dataclass(frozen=True)
class Pass:
    """What is fixed during the updates on one batch of experience."""

    algorithm: Algorithm
    compute: Compute
    reference: Any
    micro_batch_size: int
    temperature: float
    beta: float
    beta_old: float
    value_weight: float
    lr: float
    """The schedule's factor."""
    exact_start: bool = True
    """The first minibatch's old log-probs come from its own forward pass: its ratio is exactly 1, whatever the layout
    of the micro-batches and the dtype. False where they are kept from sampling."""

    target_kl: float | None = None
    """Nats a token from the policy that sampled, beyond which the rest of the epochs is left out."""
    memory: Memory = field(default_factory=Memory)
    checks: bool = True
    """A loss that is not finite is an error."""
    lockstep: bool = False
    """The processes go through a model's layers together: none may break off, or start over, by itself."""

    def micro_batches(self, experience: Experience) -> Iterator[Experience]:
        """Of this process's share: `micro_batch_size` rows, or more shorter ones, where no other process waits."""
        share, size = distributed.share(len(experience.rollout)), self.micro_batch_size
        if share.start == share.stop:
            return
        mine = experience.select(share)
        even = [slice(at, at + size) for at in range(0, len(mine.rollout), size)]
        for rows in even if self.lockstep else mine.rollout.pieces(size):
            yield mine.select(rows)

    def fit(self, gradients: Callable[[int], "Sums"]) -> "Sums":
        """Gradients that fit this process's memory; NonFinite for all where it is so for one."""
        if self.lockstep:
            return gradients(self.micro_batch_size)
        return distributed.all_or_none(lambda: self.memory.fit("learning", self.micro_batch_size, gradients))

    def read(self, model: Any, micro: Experience, value_head: Any = None) -> Reading:
        wants_kl = self.algorithm.full_kl and self.algorithm.kl == "loss"
        with self.compute.autocast():
            return read(
                model,
                micro.rollout,
                temperature=self.temperature,
                value_head=value_head,
                reference=self.reference if wants_kl else None,
                direction=self.algorithm.kl_direction,
            )

    def actor_loss(
        self, micro: Experience, reading: Reading, total: float, *, first: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`first`: the policy is still the one that sampled."""
        if first and self.exact_start:
            micro = replace(micro, old_logprobs=reading.logprobs.detach())
        loss, metrics = self.algorithm.actor_loss(
            micro,
            reading.logprobs,
            reading.entropies,
            beta=self.beta,
            total=total,
            beta_old=self.beta_old,
            full_kl=reading.full_kl,
        )
        self.check("the actor's loss is", loss)
        return loss, metrics

    def check(self, what: str, loss: Tensor) -> None:
        """Raise NonFinite; in lockstep the gradients' norm, which all see, tells it."""
        if self.checks and not self.lockstep:
            check_finite(what, loss.detach())


def update(
    settings: Pass,
    experience: Experience,
    actor: Learner,
    critic: Learner | SharedCritic | None,
    *,
    epochs: int,
    minibatches: int,
    seed: int,
    step: int,
    trust: TrustRegion | None = None,
    extra_loss: Callable[[int], Tensor] | None = None,
) -> dict[str, float]:
    """Train on one batch; returns the metrics of the update, averaged over tokens or optimizer steps.

    `trust`: the actor takes one trust-region step on the whole batch, the minibatches are the critic's.
    `extra_loss`: a function of the optimizer step's number whose loss is added, such as the pretraining mix.
    """
    sums = Sums()
    _train_mode(True, actor, critic)
    if trust is not None:
        sums.extra |= trust_region_update(settings, experience, actor, trust, sums)
    for epoch, number, minibatch in _minibatches(experience, epochs, minibatches, seed, step):
        if trust is None:
            before = sums
            gradients = partial(_actor_gradients, settings, minibatch, actor, critic, before, epoch, number)
            sums = settings.fit(gradients)
            if settings.target_kl is not None and sums.kl_since(before) > settings.target_kl:
                sums = replace(sums, loss=before.loss, value_loss=before.value_loss)
                actor.forget()
                break
            if extra_loss is not None:
                extra = extra_loss(epoch * minibatches + number) / distributed.world()  # the same on each
                settings.check("the pretraining loss is", extra)
                extra.backward()
                sums.extra_loss += float(extra.detach())
            sums.grad_norm += actor.step(settings.lr)
            sums.steps += 1
        # the critic after the actor: only one of them holds gradients at a time
        if isinstance(critic, Learner):
            gradients = partial(_critic_gradients, settings, minibatch, critic, sums)
            sums = settings.fit(gradients)
            critic.step(settings.lr)
        sums.updates += 1
    _train_mode(False, actor, critic)
    if settings.target_kl is not None:
        sums.extra["train/updates"] = float(sums.updates)
    return sums.of_all().metrics(has_critic=critic is not None)


def _minibatches(
    experience: Experience, epochs: int, minibatches: int, seed: int, step: int
) -> Iterator[tuple[int, int, Experience]]:
    """(epoch, number in it, minibatch)"""
    count = len(experience.rollout)
    size = count // minibatches
    for epoch in range(epochs):
        order = permutation(seed, step, epoch, count)
        for number, at in enumerate(range(0, count, size)):
            minibatch = experience.select(order[at : at + size])
            yield epoch, number, minibatch.select(minibatch.rollout.side_by_side())


@dataclass
class Sums:
    """Sums of an update's metrics, over tokens and optimizer steps."""

    loss: float = 0.0
    value_loss: float = 0.0
    clipfrac: float = 0.0
    approx_kl: float = 0.0
    ratio_max: float = 0.0
    extra_loss: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    steps: int = 0
    """Of the actor's optimizer."""
    updates: int = 0
    """Minibatches that were learned from."""
    entropy: float = 0.0
    seen: int = 0
    mismatch: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    def first_pass(self, micro: Experience, reading: Reading, *, sampler: bool) -> None:
        """Entropies of the first pass over the batch; `sampler`: the policy is still the one that sampled."""
        self.entropy += float(reading.entropies.detach().sum())
        self.seen += int(micro.rollout.lengths.sum())
        if sampler:
            difference = (reading.logprobs.detach() - micro.rollout.logprobs).abs().max()
            self.mismatch = max(self.mismatch, float(difference))

    def add(self, loss: Tensor, metrics: dict[str, Tensor], tokens: int) -> None:
        self.loss += float(loss.detach())
        self.clipfrac += float(metrics["clipfrac"])
        self.approx_kl += float(metrics["approx_kl"])
        self.ratio_max = max(self.ratio_max, float(metrics["ratio_max"]))
        self.tokens += tokens

    def kl_since(self, before: "Sums") -> float:
        """Nats a token between the policy that sampled and this one, on what all added since `before`."""
        kl, tokens = distributed.sums((self.approx_kl - before.approx_kl, self.tokens - before.tokens))
        return kl / max(1, tokens)

    def of_all(self) -> "Sums":
        """The sums over all processes."""
        names = ("loss", "value_loss", "clipfrac", "approx_kl", "extra_loss", "tokens", "entropy", "seen")
        for name, total in zip(names, distributed.sums(getattr(self, name) for name in names), strict=True):
            setattr(self, name, total)
        for name in ("ratio_max", "mismatch"):
            setattr(self, name, max(distributed.gather(getattr(self, name))))
        return self

    def metrics(self, *, has_critic: bool) -> dict[str, float]:
        steps, tokens = max(1, self.steps), max(1, self.tokens)
        result = {
            "train/loss": self.loss / steps,
            "train/clipfrac": self.clipfrac / tokens,
            "train/approx_kl": self.approx_kl / tokens,
            "train/ratio_max": self.ratio_max,
            "train/grad_norm": self.grad_norm / steps,
            "train/entropy": self.entropy / max(1, self.seen),
            "train/logprob_mismatch": self.mismatch,
        }
        if has_critic:
            result["train/value_loss"] = self.value_loss / max(1, self.updates)
        if self.extra_loss:
            result["train/ptx_loss"] = self.extra_loss / steps
        return result | self.extra


def _actor_gradients(
    settings: Pass,
    minibatch: Experience,
    actor: Learner,
    critic: Any,
    before: Sums,
    epoch: int,
    number: int,
    rows: int,
) -> Sums:
    """The actor's gradients of a minibatch, `rows` at a time, and the sums with its metrics. Free to start over."""
    sums, settings = copy.copy(before), replace(settings, micro_batch_size=rows)
    actor.forget()
    total = settings.algorithm.total(minibatch)
    with in_place(not settings.lockstep):
        for micro in settings.micro_batches(minibatch):
            _actor_backward(settings, micro, actor, critic, total, sums, epoch=epoch, number=number)
    return sums


def _critic_gradients(settings: Pass, minibatch: Experience, critic: Learner, before: Sums, rows: int) -> Sums:
    """The critic's, in the same way."""
    first_try = rows == settings.micro_batch_size
    sums, settings = copy.copy(before), replace(settings, micro_batch_size=rows)
    critic.forget()
    total = settings.algorithm.total(minibatch)
    with in_place(not settings.lockstep):
        if minibatch.graph is not None and before.updates == 0 and first_try:
            _value_backward(settings, minibatch, minibatch.graph, total, sums)
            return sums
        for micro in settings.micro_batches(minibatch):
            with settings.compute.autocast():
                values = response_values(critic.model, micro.rollout)
            _value_backward(settings, micro, values, total, sums)
    return sums


def _actor_backward(
    settings: Pass, micro: Experience, actor: Learner, critic: Any, total: float, sums: Sums, *, epoch: int, number: int
) -> None:
    """The actor's micro-batch; with a shared critic its value loss comes from the same forward pass."""
    shared = critic if isinstance(critic, SharedCritic) else None
    reading = settings.read(actor.model, micro, shared.score if shared else None)
    first = epoch == number == 0
    loss, metrics = settings.actor_loss(micro, reading, total, first=first)
    if epoch == 0:
        sums.first_pass(micro, reading, sampler=first)
    sums.add(loss, metrics, int(micro.rollout.lengths.sum()))
    if reading.values is not None:
        value_loss, _ = settings.algorithm.critic_loss(micro, reading.values, total=total)
        settings.check("the critic's loss is", value_loss)
        sums.value_loss += float(value_loss.detach())
        loss = loss + settings.value_weight * value_loss
    loss.backward()


def _value_backward(settings: Pass, micro: Experience, values: Tensor, total: float, sums: Sums) -> None:
    value_loss, _ = settings.algorithm.critic_loss(micro, values, total=total)
    settings.check("the critic's loss is", value_loss)
    (settings.value_weight * value_loss).backward()
    sums.value_loss += float(value_loss.detach())


FISHER_SHARE = 0.25
"""Of the rollouts, for the curvature: it needs fewer than the gradient (TRPO, appendix C) and takes the longest."""


def trust_region_update(
    settings: Pass, experience: Experience, actor: Learner, trust: TrustRegion, sums: Sums
) -> dict[str, float]:
    """One natural-gradient step of the actor on the whole batch, with the true KL at most `trust.delta`."""
    parameters = [p for p in actor.model.parameters() if p.requires_grad]
    total = settings.algorithm.total(experience)
    before = copy.deepcopy(actor.model).requires_grad_(False)

    def gradients() -> None:
        for micro in settings.micro_batches(experience):
            reading = settings.read(actor.model, micro)
            loss, metrics = settings.actor_loss(micro, reading, total, first=True)
            sums.first_pass(micro, reading, sampler=True)
            sums.add(loss, metrics, int(micro.rollout.lengths.sum()))
            loss.backward()

    distributed.all_or_none(gradients)
    distributed.sum_gradients(parameters)
    gradient = flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
    actor.optimizer.zero_grad(set_to_none=True)
    if not torch.isfinite(gradient).all():
        raise NonFinite("the gradient is")
    sums.grad_norm, sums.steps = float(gradient.norm()), 1

    tried = replace(settings, checks=False)

    def loss_and_kl() -> tuple[float, float]:
        # a step so large that these are not finite is halved like any other
        batch = list(tried.micro_batches(experience))
        loss = sum(float(tried.actor_loss(m, tried.read(actor.model, m), total)[0]) for m in batch)
        kl = sum(map(float, token_mean_kl(settings, experience, actor.model, before)))
        loss, kl = distributed.sums((loss, kl))
        return loss, kl

    sample = experience.select(slice(0, max(1, round(FISHER_SHARE * len(experience.rollout)))))
    fisher = partial(fisher_product, settings, sample, actor.model, before)
    step = natural_step(gradient, fisher, delta=trust.delta, damping=trust.damping, cg_steps=trust.cg_steps)
    share, kl = line_search(parameters, step, loss_and_kl, delta=trust.delta, tries=trust.line_search_steps)
    return {"train/trust_region_share": share, "train/trust_region_kl": kl}


def token_mean_kl(settings: Pass, experience: Experience, model: Any, before: Any) -> Iterator[Tensor]:
    """KL(π_before ‖ π_model), exact at each response token: each micro-batch's part of the mean over all tokens.

    Without autocast: at π_before the KL is 0 and its curvature is the difference of nearly equal numbers.
    """
    tokens = int(experience.rollout.lengths.sum())
    for micro in settings.micro_batches(experience):
        reading = read(model, micro.rollout, temperature=settings.temperature, reference=before, direction="ref_policy")
        assert reading.full_kl is not None
        yield reading.full_kl.sum() / tokens


def fisher_product(settings: Pass, experience: Experience, model: Any, before: Any, vector: Tensor) -> Tensor:
    """F · vector, F the Hessian of `token_mean_kl` in the model's trainable parameters (flat, [n] -> [n])."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # fused attention kernels have no second derivative, nor have hand-written gradients
    with sdpa_kernel(SDPBackend.MATH), differentiable_twice():
        products = (
            hessian_product(kl, parameters, vector) for kl in token_mean_kl(settings, experience, model, before)
        )
        return distributed.summed(sum(products, torch.zeros_like(vector)))


def _train_mode(on: bool, actor: Learner, critic: Any) -> None:
    train_mode(actor.model, on)
    if isinstance(critic, Learner):
        train_mode(critic.model, on)
