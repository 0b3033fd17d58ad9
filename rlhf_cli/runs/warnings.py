"""Signs of a run that learns nothing any more, said once when they have lasted."""

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


@dataclass
class Warnings:
    """Counts for how many steps in a row each sign was there."""

    lasted: dict[str, int] = field(default_factory=dict)

    def after(self, metrics: dict[str, float]) -> list[str]:
        """What to say after this step: a sign that has now lasted long enough; again only after it was gone."""
        said = []
        for name in SIGNS.keys() & metrics.keys():
            is_bad, text = SIGNS[name]
            self.lasted[name] = self.lasted.get(name, 0) + 1 if is_bad(metrics[name]) else 0
            if self.lasted[name] == PATIENCE:
                said.append(f"warning: for {PATIENCE} steps now, {text}")
        return said
