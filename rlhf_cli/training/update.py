"""One batch of experience, epochs × minibatches × micro-batches of updates."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.forward import response_logprobs, response_values
from rlhf_cli.rl.randomness import permutation
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.training.setup import Compute


class NonFinite(RuntimeError):
    """A loss or gradient was not finite; the weights were not touched."""


@dataclass
class Learner:
    """A model and its optimizer."""

    model: Any
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )

    def step(self, scale: float) -> float:
        """Clip, check, update at `scale` × the learning rate; returns the gradient norm before the clip."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFinite("the gradient is not finite; lower optim.actor_lr / optim.critic_lr or look at the rewards")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


def lr_scale(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate's factor at a step (from 1): linear warm-up, then the schedule down to 0 at `steps`."""
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


def update(
    algorithm: Algorithm,
    experience: Experience,
    actor: Learner,
    critic: Learner | None,
    compute: Compute,
    *,
    epochs: int,
    minibatches: int,
    micro_batch_size: int,
    temperature: float,
    beta: float,
    value_weight: float,
    lr: float,
    seed: int,
    step: int,
) -> dict[str, float]:
    """Train on one batch; returns the metrics of the update, averaged over tokens or optimizer steps."""
    count = len(experience.rollout)
    size = count // minibatches
    sums: dict[str, float] = dict.fromkeys(("clipfrac", "approx_kl", "loss", "value_loss", "grad_norm"), 0.0)
    tokens, ratio_max, optimizer_steps = 0, 0.0, 0
    actor.model.train()
    if critic is not None:
        critic.model.train()
    for epoch in range(epochs):
        order = permutation(seed, step, epoch, count)
        for at in range(0, count, size):
            minibatch = experience.select(order[at : at + size])
            total = algorithm.total(minibatch)
            for start in range(0, size, micro_batch_size):
                micro = minibatch.select(slice(start, start + micro_batch_size))
                with compute.autocast():
                    logprobs, entropies = response_logprobs(actor.model, micro.rollout, temperature=temperature)
                loss, metrics = algorithm.actor_loss(micro, logprobs, entropies, beta=beta, total=total)
                _check(loss)
                loss.backward()
                sums["loss"] += float(loss.detach())
                sums["clipfrac"] += float(metrics["clipfrac"])
                sums["approx_kl"] += float(metrics["approx_kl"])
                ratio_max = max(ratio_max, float(metrics["ratio_max"]))
                tokens += int(micro.rollout.lengths.sum())
                if critic is not None:
                    with compute.autocast():
                        values = response_values(critic.model, micro.rollout)
                    value_loss, _ = algorithm.critic_loss(micro, values, total=total)
                    _check(value_loss)
                    (value_weight * value_loss).backward()
                    sums["value_loss"] += float(value_loss.detach())
            sums["grad_norm"] += actor.step(lr)
            if critic is not None:
                critic.step(lr)
            optimizer_steps += 1
    actor.model.eval()
    if critic is not None:
        critic.model.eval()
    result = {
        "train/loss": sums["loss"] / optimizer_steps,
        "train/clipfrac": sums["clipfrac"] / tokens,
        "train/approx_kl": sums["approx_kl"] / tokens,
        "train/ratio_max": ratio_max,
        "train/grad_norm": sums["grad_norm"] / optimizer_steps,
    }
    return result | ({"train/value_loss": sums["value_loss"] / optimizer_steps} if critic is not None else {})


def _check(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise NonFinite("the loss is not finite; the weights were not touched by it")
