"""stop.when: rules under which a run stops, judged at its validations."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.stop_schema import Rule
from rlhf_cli.tracking.jsonl import read_jsonl


@dataclass
class StopRules:
    """How often in a row each rule has been met. A resumed run counts again what its metrics.jsonl holds."""

    rules: tuple[Rule, ...]
    patience: int
    counts: dict[Rule, int] = field(default_factory=dict)
    reason: str | None = None
    """Why the run is to stop, once it is."""

    @staticmethod
    def of(folder: Path, rules: Iterable[Rule], patience: int) -> "StopRules":
        found = StopRules(tuple(rules), patience)
        for row in read_jsonl(folder / "metrics.jsonl") if found.rules else []:
            if "val/score" in row:
                found.look(int(row["step"]), row)
        return found

    def look(self, step: int, metrics: dict[str, float]) -> None:
        """Count a validation. The untrained policy's, at step 0, only shows which metrics there are."""
        for rule in self.rules:
            value = metrics.get(rule.metric)
            if step == 0:
                if value is None and rule.metric.startswith("val/") and "val/nonfinite" not in metrics:
                    known = ", ".join(name for name in metrics if name.startswith("val/"))
                    raise UserError(f"stop.when: a validation has no metric {rule.metric}; it has {known}")
                continue
            self.counts[rule] = self.counts.get(rule, 0) + 1 if value is not None and rule.met(value) else 0
            if self.counts[rule] >= self.patience and value is not None:
                self.reason = f"{rule.metric} is {value:.4g}, {rule.op} {rule.number:g}"
                self.reason += f" at {self.patience} validations in a row" if self.patience > 1 else ""
