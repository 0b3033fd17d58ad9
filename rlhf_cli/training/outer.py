"""The outer loop of iterative algorithms (Shao et al. 2024, alg. 1): every M steps the policy becomes the reference,
and the reward model is trained further."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.preferences.continual import Continual
from rlhf_cli.rewards.scorer import Texts


@dataclass
class OuterLoop:
    steps: int
    """Training steps an iteration."""
    group_size: int
    continual: Continual | None = None
    """Trains the reward model further; None: it stays fixed."""

    def after(self, step: int, policy: Any, reference: Any, texts: Texts) -> dict[str, float]:
        """To be called after each training step with its responses; returns metrics at the end of an iteration."""
        if self.continual:
            self.continual.collect(texts, self.group_size)
        if step % self.steps:
            return {}
        reference.load_state_dict(policy.state_dict())
        return self.continual.train(step) if self.continual else {}

    def save(self, folder: Path) -> None:
        if self.continual:
            self.continual.save(folder)

    def restore(self, folder: Path) -> None:
        if self.continual:
            self.continual.restore(folder)
