"""The metrics of a training step: of its batch, and of its update."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.read import Reading
from rlhf_cli.evaluation.repetition import repetition
from rlhf_cli.rl.advantages import constant_groups
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.losses import explained_variance
from rlhf_cli.rl.masked import masked_mean, masked_sum
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.training.rollouts import Rollouts


def describe(rollouts: Rollouts, batch: Experience, algo: Algorithm, shares: dict[str, float]) -> dict[str, float]:
    """Metrics of a batch, before its update. `shares`: of the advantages, by part of the reward."""
    rollout, mask, rewards, texts = batch.rollout, batch.rollout.mask, rollouts.rewards, rollouts.texts
    assert batch.advantages is not None
    log_ratio = (batch.old_logprobs - batch.ref_logprobs) * mask
    k3 = (torch.exp(-log_ratio) - 1 + log_ratio) * mask
    metrics: dict[str, Any] = {
        "train/score": rewards.score.mean(),
        "train/reward": rewards.reward.mean(),
        "train/kl": log_ratio.sum(1).mean(),
        "train/kl_k3": k3.sum(1).mean(),
        "train/response_length": rollout.lengths.float().mean(),
        "train/eos_rate": rollout.ended.float().mean(),
        "train/repetition": sum(map(repetition, texts.responses)) / len(texts.responses),
        "train/advantage_length_corr": correlation(
            masked_mean(batch.advantages, mask, 1), rollout.lengths.to(mask.device).float()
        ),
        "train/beta": algo.beta.value,
    }
    if algo.surrogate == "kl_penalty":
        metrics["train/beta_old"] = algo.beta_old.value
    if algo.filter == "refill":
        metrics["train/groups_drawn"] = rollouts.groups_drawn
    if len(rollout.group.unique()) < len(rollout):
        metrics["train/zero_variance_groups"] = constant_groups(rewards.reward, rollout.group).float().mean()
    metrics |= {f"train/penalty/{name}": part.mean() for name, part in rewards.parts.items()}
    metrics |= {f"train/source/{name}": part.mean() for name, part in rewards.sources.items()}
    metrics |= {f"train/advantage_share/{name}": share for name, share in shares.items()}
    if batch.values is not None and batch.returns is not None:
        metrics["train/explained_variance"] = explained_variance(batch.values, batch.returns, mask)
    if batch.entropies is not None:
        metrics["train/entropy"] = masked_sum(batch.entropies, mask) / rollout.lengths.sum()
    if batch.read_logprobs is not None:
        metrics["train/logprob_mismatch"] = ((batch.read_logprobs - rollout.logprobs) * mask).abs().max()
    return told(metrics)


def told(metrics: dict[str, Tensor | float]) -> dict[str, float]:
    """Plain numbers. What is on a GPU is read at once: the host waits one time, not for each."""
    there = [name for name, value in metrics.items() if isinstance(value, Tensor) and value.is_cuda]
    known = {name: float(value) for name, value in metrics.items() if name not in there}
    if there:
        read = torch.stack([torch.as_tensor(metrics[name]).detach().double() for name in there]).tolist()
        known |= dict(zip(there, read, strict=True))
    return {name: known[name] for name in metrics}


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = (x.norm() * y.norm()).double()
    return torch.where(scale > 0, x.dot(y).double() / scale, 0.0)


def merged(batch: dict[str, float], update: dict[str, float]) -> dict[str, float]:
    """The metrics of a step: the larger of the two log-prob mismatches, and the entropy from before the update."""
    name = "train/logprob_mismatch"
    return update | batch | {name: max(batch.get(name, 0.0), update.get(name, 0.0))}


@dataclass
class UpdateStats:
    """Sums of an update's metrics, over tokens and optimizer steps: on the device in float64 until `of_all`."""

    loss: Any = 0.0
    value_loss: Any = 0.0
    clipfrac: Any = 0.0
    clipfrac_dual: Any = 0.0
    approx_kl: Any = 0.0
    ratio_max: Any = 0.0
    kl: Any = 0.0
    """To the reference, where it is a term of the loss."""
    mix_loss: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    steps: int = 0
    """Optimizer steps of the policy."""
    updates: int = 0
    """Minibatches that were used for an update."""
    value_clipfrac: Any = 0.0
    value_tokens: int = 0
    """Tokens of the critic's updates."""
    entropy: Any = 0.0
    tokens_read: int = 0
    """Tokens of the first epoch, over which `entropy` is averaged."""
    mismatch: Any = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    def first_epoch(self, micro: Experience, reading: Reading, *, sampler: bool) -> None:
        """Entropies of the first pass over the batch; `sampler`: the policy is still the one that sampled."""
        self.entropy = self.entropy + reading.entropies.detach().sum().double()
        self.tokens_read += int(micro.rollout.lengths.sum())
        if sampler:
            difference = (reading.logprobs.detach() - micro.rollout.logprobs).abs().max()
            self.mismatch = difference.double().clamp(min=self.mismatch)

    def add(self, loss: Tensor, metrics: dict[str, Tensor], tokens: int) -> None:
        self.loss = self.loss + loss.detach().double()
        for name in metrics.keys() & {"clipfrac", "clipfrac_dual", "approx_kl", "kl"}:
            setattr(self, name, getattr(self, name) + metrics[name].double())
        self.ratio_max = metrics["ratio_max"].double().clamp(min=self.ratio_max)
        self.tokens += tokens

    def add_value(self, loss: Tensor, metrics: dict[str, Tensor], tokens: int) -> None:
        self.value_loss = self.value_loss + loss.detach().double()
        self.value_clipfrac = self.value_clipfrac + metrics["value_clipfrac"].double()
        self.value_tokens += tokens

    def kl_since(self, before: "UpdateStats") -> float:
        """Nats a token between the policy that sampled and this one, on what all added since `before`."""
        kl, tokens = distributed.sums((float(self.approx_kl - before.approx_kl), self.tokens - before.tokens))
        return kl / max(1, tokens)

    def of_all(self) -> "UpdateStats":
        """As numbers, reduced over all processes."""
        names = (
            "loss", "value_loss", "clipfrac", "clipfrac_dual", "approx_kl", "kl", "mix_loss", "tokens", "entropy",
            "tokens_read", "value_clipfrac", "value_tokens",
        )  # fmt: skip
        mine = told({name: getattr(self, name) for name in (*names, "ratio_max", "mismatch")})
        for name, total in zip(names, distributed.sums(mine[name] for name in names), strict=True):
            setattr(self, name, total)
        for name in ("ratio_max", "mismatch"):
            setattr(self, name, max(distributed.gather(mine[name])))
        return self

    def metrics(self, algo: Algorithm, *, has_critic: bool) -> dict[str, float]:
        steps, tokens = max(1, self.steps), max(1, self.tokens)
        result = {
            "train/loss": self.loss / steps,
            "train/clipfrac": self.clipfrac / tokens,
            "train/approx_kl": self.approx_kl / tokens,
            "train/ratio_max": self.ratio_max,
            "train/grad_norm": self.grad_norm / steps,
            "train/entropy": self.entropy / max(1, self.tokens_read),
            "train/logprob_mismatch": self.mismatch,
        }
        if algo.dual_clip is not None:
            result["train/clipfrac_dual"] = self.clipfrac_dual / tokens
        if algo.kl_in_loss:
            result["train/kl_loss"] = self.kl / tokens
        if has_critic:
            result["train/value_loss"] = self.value_loss / max(1, self.updates)
        if has_critic and algo.value_clip is not None:
            result["train/value_clipfrac"] = self.value_clipfrac / max(1, self.value_tokens)
        if self.mix_loss:
            result["train/ptx_loss"] = self.mix_loss / steps
        return result | self.extra
