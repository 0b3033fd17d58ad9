"""The algorithm as in a paper: sample, score, estimate, update, track."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.evaluation.text import repetition
from rlhf_cli.rewards.scorer import Rewards, Texts
from rlhf_cli.rl.forward import response_logprobs, response_values
from rlhf_cli.rl.losses import explained_variance
from rlhf_cli.rl.masked import masked_mean
from rlhf_cli.rl.rollout import Experience, Prompts, Rollout
from rlhf_cli.rl.sampling import sample
from rlhf_cli.training.memory import peak_mb
from rlhf_cli.training.setup import Lab
from rlhf_cli.training.state import State
from rlhf_cli.training.update import lr_scale, update


class Clock:
    """Seconds by phase, as `time/<phase>_s`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[f"time/{name}_s"] = time.perf_counter() - start


def train_step(lab: Lab, state: State, step: int) -> dict[str, float]:
    """One step: sample ▸ score ▸ estimate ▸ update. Returns its metrics."""
    config, algo, clock = lab.config, lab.config.algo, Clock()
    beta = state.kl.value
    with clock.phase("rollout"):
        distinct = config.rollout.batch_size // algo.group_size
        chosen = lab.train.batch(step, count=distinct, seed=config.seed)
        prompts = lab.train.prompts(chosen, group_size=algo.group_size)
        rollout = roll_out(lab, prompts, step=step, micro_batch_size=config.rollout.micro_batch_size)
    with clock.phase("score"):
        texts = lab.texts(rollout, lab.train, [i for i in chosen for _ in range(algo.group_size)])
        rewards = lab.scorer(texts)
    with clock.phase("forward"):
        experience, entropy = look_back(lab, rollout)
        experience = state.algorithm.estimate(experience, rewards.reward.to(lab.compute.device), beta=beta)
    with clock.phase("update"):
        optim = config.optim
        lr = lr_scale(step, steps=config.steps, warmup=optim.warmup_steps, schedule=optim.schedule)
        metrics = update(
            state.algorithm,
            experience,
            state.actor,
            state.critic,
            lab.compute,
            epochs=algo.epochs,
            minibatches=algo.minibatches,
            micro_batch_size=optim.micro_batch_size,
            temperature=config.rollout.temperature,
            beta=beta,
            value_weight=algo.value,
            lr=lr,
            seed=config.seed,
            step=step,
        )
    metrics |= describe(experience, entropy, texts, rewards)
    metrics |= {"train/beta": beta, "train/lr": optim.actor_lr * lr}
    state.kl.update(metrics["train/kl"], len(rollout))
    tokens = int(rollout.lengths.sum())
    metrics |= clock.seconds | {"throughput/tokens_per_s": tokens / sum(clock.seconds.values())}
    return metrics | {"memory/peak_mb": peak_mb(lab.compute.device)}


def roll_out(lab: Lab, prompts: Prompts, *, step: int, micro_batch_size: int) -> Rollout:
    """Sample a response to each prompt, `micro_batch_size` at a time."""
    rollout = lab.config.rollout
    pieces = []
    for at in range(0, len(prompts), micro_batch_size):
        with lab.compute.autocast():
            pieces.append(
                sample(
                    lab.actor,
                    prompts.select(slice(at, at + micro_batch_size)).to(lab.compute.device),
                    eos_ids=lab.eos,
                    pad_id=lab.pad,
                    max_length=rollout.max_response_length,
                    temperature=rollout.temperature,
                    seed=lab.config.seed,
                    step=step,
                )
            )
    names = ("prompts", "prompt_lengths", "responses", "lengths", "ended", "logprobs", "group")
    return Rollout(**{name: torch.cat([getattr(p, name) for p in pieces]) for name in names}).trimmed()


@torch.no_grad()
def look_back(lab: Lab, rollout: Rollout) -> tuple[Experience, Tensor]:
    """What the current policy, the reference and the critic say of the rollout."""
    config = lab.config
    size = config.optim.micro_batch_size
    old, entropy, reference, values = [], [], [], []
    for at in range(0, len(rollout), size):
        micro = rollout.select(slice(at, at + size))
        with lab.compute.autocast():
            logprobs, entropies = response_logprobs(lab.actor, micro, temperature=config.rollout.temperature)
            ref, _ = response_logprobs(lab.reference, micro, temperature=config.rollout.temperature)
            values.append(response_values(lab.critic, micro) if lab.critic is not None else ref * 0)
        old.append(logprobs if config.algo.old_logprobs == "recompute" else micro.logprobs)
        entropy.append(entropies)
        reference.append(ref)
    zero = torch.zeros_like(rollout.logprobs)
    experience = Experience(rollout, torch.cat(old), torch.cat(reference), torch.cat(values), zero, zero)
    return experience, torch.cat(entropy)


def describe(experience: Experience, entropy: Tensor, texts: Texts, rewards: Rewards) -> dict[str, float]:
    """The metrics of a batch of rollouts, before its update."""
    rollout, mask = experience.rollout, experience.rollout.mask
    log_ratio = (experience.old_logprobs - experience.ref_logprobs) * mask
    k3 = (torch.exp(-log_ratio) - 1 + log_ratio) * mask
    metrics: dict[str, Any] = {
        "train/score": rewards.score.mean(),
        "train/reward": rewards.reward.mean(),
        "train/kl": log_ratio.sum(1).mean(),
        "train/kl_k3": k3.sum(1).mean(),
        "train/entropy": masked_mean(entropy, mask),
        "train/response_length": rollout.lengths.float().mean(),
        "train/eos_rate": rollout.ended.float().mean(),
        "train/repetition": sum(map(repetition, texts.responses)) / len(texts.responses),
    }
    metrics |= {f"train/penalty/{name}": part.mean() for name, part in rewards.parts.items()}
    if experience.values.any():
        metrics["train/explained_variance"] = explained_variance(experience.values, experience.returns, mask)
    return {name: float(value) for name, value in metrics.items()}
