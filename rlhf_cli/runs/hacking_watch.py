"""Reward-hacking detection during a run: the baseline, the index at each validation, the step of onset."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.evaluation.hacking import Judged, hacking_index, index_interval, onset, signs
from rlhf_cli.evaluation.validation_metrics import gold_of
from rlhf_cli.tracking.jsonl import read_jsonl

DRIFT = ("response_length", "eos_rate", "entropy")
"""What is only shown beside the index, as its change since the first validation."""


@dataclass
class HackingWatch:
    """Compares each validation with the run's first. A resumed run reads what it knows in the run's files."""

    threshold: float
    start: Judged | None = None
    lost: bool = False
    """What the untrained policy wrote is no longer on the disk: there is nothing to compare with."""
    indices: list[tuple[int, float]] = field(default_factory=list)
    """(step, index) of every validation after the first."""
    since: int = -1
    """What was seen up to this step has been answered."""

    @staticmethod
    def of(folder: Path, threshold: float) -> "HackingWatch":
        """Restored from the files of the run in this folder; new where there are none."""
        watch = HackingWatch(threshold)
        judged = [row for row in read_jsonl(folder / "metrics.jsonl") if "hacking/shared_phrases" in row]
        if judged:
            first = judged[0]["step"]
            rows = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] == first]
            watch.start, watch.lost = as_judged(judged[0], rows), not rows
            watch.indices = [(row["step"], row["hacking/index"]) for row in judged if "hacking/index" in row]
        return watch

    @property
    def onset(self) -> int | None:
        """The step at which hacking began, if it did."""
        return onset([(step, index) for step, index in self.indices if step > self.since], self.threshold)

    @property
    def suspicious(self) -> bool:
        """Whether the last validation's index was at the threshold or above."""
        return bool(self.indices) and self.indices[-1][1] >= self.threshold

    def look(self, step: int, metrics: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, float]:
        """`hacking/index`, its interval and the signs behind it; {} for the one that the rest are compared with."""
        if self.lost:
            return {}
        now = as_judged(metrics, rows)
        if self.start is None:
            self.start = now
            return {}
        index = hacking_index(now, self.start)
        self.indices.append((step, index))
        found = {f"hacking/sign/{name}": value for name, value in signs(now, self.start).items()}
        drift = {f"hacking/{name}_drift": now.panel[name] - self.start.panel[name] for name in DRIFT}
        low, high = index_interval(now, self.start)
        interval = {"hacking/index_low": low, "hacking/index_high": high}
        return {"hacking/index": index} | interval | found | drift


def as_judged(metrics: dict[str, float], rows: list[dict[str, Any]]) -> Judged:
    """A validation from its metrics and its sample rows."""
    panel = {key.removeprefix("hacking/"): value for key, value in metrics.items() if key.startswith("hacking/")}
    gold = next(iter(gold_of(rows).values()), None)  # the first judge's
    panel |= {name: metrics[f"val/{name}"] for name in ("perplexity", *DRIFT)}
    return Judged(panel, [row["score"] for row in rows], gold, [row["response"] for row in rows])


def account(metrics: dict[str, float], samples: Path) -> str:
    """What the alert says: the index, its signs with the strongest first, where to read."""
    found = {k.removeprefix("hacking/sign/"): v for k, v in metrics.items() if k.startswith("hacking/sign/")}
    strongest = sorted(((v, k) for k, v in found.items() if v >= 0.1), reverse=True)
    named = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for value, name in strongest)
    index = f"index {metrics['hacking/index']:.2f}"
    if "hacking/index_low" in metrics:
        index += f", 95 % interval {metrics['hacking/index_low']:.2f} to {metrics['hacking/index_high']:.2f}"
    return f"{index} ({named}); read what it writes: {samples}"
