"""The checkpoint that is best by a metric of the validations."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Checkpoint
from rlhf_cli.runs.status import write_atomic


@dataclass
class Best:
    metric: str | None
    sign: float
    step: int | None = None
    value: float | None = None

    @staticmethod
    def of(wanted: Checkpoint, known: dict[str, Any] | None) -> "Best":
        """`known`: the best validation so far, as the resumed checkpoint has it."""
        best = Best(wanted.best, -1.0 if wanted.best_is == "lowest" else 1.0)
        if known and known["metric"] == wanted.best:
            best.step, best.value = known["step"], known["value"]
        return best

    @property
    def known(self) -> dict[str, Any] | None:
        return {"metric": self.metric, "step": self.step, "value": self.value} if self.metric else None

    def beaten(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether this validation is the best so far, and so to be saved. The untrained actor's does not count."""
        if self.metric is None or "val/nonfinite" in metrics:
            return False
        if step == 0:
            check_known("checkpoint.best", self.metric, metrics)
        value = metrics.get(self.metric)
        if step == 0 or value is None or (self.value is not None and self.sign * value <= self.sign * self.value):
            return False
        self.step, self.value = step, value
        return True

    def name(self, checkpoint: Path) -> None:
        """Write `checkpoints/best` if this checkpoint is the best."""
        if checkpoint.name == f"step_{self.step or 0:06d}" and self.step:
            write_atomic(checkpoint.parent / "best", checkpoint.name + "\n")


def named(folder: Path, name: str) -> str:
    """The checkpoint that `checkpoints/last` or `checkpoints/best` of a run names; empty where there is none."""
    file = folder / "checkpoints" / name
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def worth(metrics: dict[str, Any], objective: str, kl_budget: float | None, *, sign: float = 1.0) -> float | None:
    """The objective's value, times `sign`, less the nats above the budget: a search stays where the score was not
    bought. None where the metrics lack the objective."""
    value = metrics.get(objective)
    if value is None or kl_budget is None:
        return value if value is None else sign * value
    return sign * value - max(0.0, metrics["val/kl"] - kl_budget)


def check_known(key: str, metric: str, metrics: dict[str, float]) -> None:
    """Raise UserError where `key=metric` names one of a validation's that this, the first, does not have."""
    known = [name for name in metrics if name.startswith("val/")]
    if metric.startswith("val/") and known and metric not in known and "val/nonfinite" not in metrics:
        near = get_close_matches(metric, known, n=1)
        hint = f" Did you mean {key}={near[0]}?" if near else ""
        raise UserError(f"{key}={metric}: a validation has no such metric.{hint} It has {', '.join(known)}")
