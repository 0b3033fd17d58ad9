"""Warnings about a run that no longer learns, given once a sign has lasted."""

from dataclasses import dataclass, field

PATIENCE = 20
"""Steps in a row."""
SIGNS = {
    "train/explained_variance": (
        lambda variance: variance <= 0,
        "the critic predicts no better than the mean: raise optim.critic_lr (lower it if train/value_loss rises), or "
        "do without a critic (algo=grpo)",
    ),
    "train/eos_rate": (
        lambda rate: rate == 0,
        "no response ends by itself: raise rollout.max_response_length, or look in samples.jsonl for a policy that "
        "cannot stop",
    ),
    "train/zero_variance_groups": (
        lambda share: share == 1,
        "all responses to a prompt get the same reward, so there is nothing to learn from: read samples.jsonl; try "
        "another reward, algo.filter=refill, a larger algo.group_size or rollout.temperature",
    ),
}


MISMATCH = {"fp32": 0.01, "bf16": 0.2}
"""Nats between a token's log-prob as it was sampled and as it is read, from which something is wrong."""


@dataclass
class Warnings:
    """Counts for how many steps in a row each sign was there."""

    lasted: dict[str, int] = field(default_factory=dict)
    precision: str = "fp32"
    mismatched: bool = False
    """Whether that warning was given."""

    def after(self, metrics: dict[str, float]) -> list[str]:
        """What to say after this step: a sign that has now lasted long enough; again only after it was gone."""
        said = self._mismatch(metrics.get("train/logprob_mismatch", 0.0))
        for name in SIGNS.keys() & metrics.keys():
            is_bad, text = SIGNS[name]
            self.lasted[name] = self.lasted.get(name, 0) + 1 if is_bad(metrics[name]) else 0
            if self.lasted[name] == PATIENCE:
                said.append(f"warning: for {PATIENCE} steps now, {text}")
        return said

    def _mismatch(self, seen: float) -> list[str]:
        limit = MISMATCH[self.precision]
        if self.mismatched or seen <= limit:
            return []
        self.mismatched = True
        return [
            f"warning: train/logprob_mismatch is {seen:.2g} nats (at most {limit:g} is rounding): sampling and reading "
            "give the same tokens different log-probs, so the first ratio is not 1 with algo.old_logprobs=rollout. "
            "Look at rlhf doctor actor.path=…, try precision=fp32 or rollout.cuda_graphs=false, and report the model"
        ]
