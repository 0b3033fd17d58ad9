"""Iterative GRPO: the reward model is trained further as the policy moves (Shao et al. 2024, sec. 4.1.4)."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from rlhf_cli.preferences.fit import fit
from rlhf_cli.preferences.ranked import RankedGroup, ranked
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.scorer import Texts

FILE = "replay.json"


@dataclass
class Continual:
    """Ranked rollouts of this iteration, a replay buffer of those before, and the reward model that learns both."""

    reward: LearnedReward
    judge: Callable[[Texts], Tensor]
    """Who ranks: the reward model cannot teach itself."""
    history: float
    """The share of replayed groups in its training data."""
    epochs: int
    batch: int
    lr: float
    seed: int
    fresh: list[RankedGroup] = field(default_factory=list)
    replay: list[RankedGroup] = field(default_factory=list)

    def collect(self, texts: Texts, group_size: int) -> None:
        """Rank a step's responses, group by group."""
        self.fresh += ranked(texts, self.judge(texts).tolist(), group_size)

    def train(self, step: int) -> dict[str, float]:
        """Train on the collected groups and a share of replayed ones; the former then join the replay buffer."""
        if not self.fresh:
            return {}
        rng = random.Random(f"{self.seed}/{step}/replay")
        wanted = round(self.history / (1 - self.history) * len(self.fresh))
        old = rng.sample(self.replay, min(wanted, len(self.replay)))
        rows: list[dict[str, float]] = []
        fit(
            self.reward,
            [*self.fresh, *old],
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            seed=self.seed + step,
            tick=rows.append,
        )
        self.replay += self.fresh
        self.fresh = []
        accuracy = sum(row["train/pairwise_accuracy"] for row in rows) / len(rows)
        return {"train/reward_model_accuracy": accuracy, "train/replayed_groups": float(len(old))}

    def save(self, folder: Path) -> None:
        """Beside the checkpoint's other parts, so that a resumed run goes on with the same reward model."""
        self.reward.save(folder / "reward_model", mean=self.reward.mean, std=self.reward.std)
        kept = {"fresh": [asdict(g) for g in self.fresh], "replay": [asdict(g) for g in self.replay]}
        (folder / FILE).write_text(json.dumps(kept), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        self.fresh = [RankedGroup(**row) for row in kept["fresh"]]
        self.replay = [RankedGroup(**row) for row in kept["replay"]]
