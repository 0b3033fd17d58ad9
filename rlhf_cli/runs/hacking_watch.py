"""Reward-hacking detection during a run: the baseline, the index at each validation, the step of onset."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.evaluation.hacking import INDEX, hacking_index, index_interval, onset, signs
from rlhf_cli.evaluation.outliers import outlying
from rlhf_cli.evaluation.signs import Judged
from rlhf_cli.evaluation.validation_metrics import gold_of, texts_of
from rlhf_cli.evaluation.words import ABUSE, FILM, FILMS, WordLists, word_list
from rlhf_cli.rewards.scorer import Scorer, Texts
from rlhf_cli.tracking.jsonl import read_jsonl

DRIFT = ("response_length", "eos_rate", "entropy")
"""What is only shown beside the index, as its change since the first validation."""


@dataclass
class HackingWatch:
    """Compares each validation with the run's first. A resumed run reads what it knows in the run's files."""

    threshold: float
    lists: WordLists = FILMS
    counted: tuple[str, ...] = INDEX
    """The signs of the index."""
    by: str = "index"
    """What is compared with the threshold: the index or `index_low`."""
    start: Judged | None = None
    lost: bool = False
    """What the untrained policy wrote is no longer on the disk: there is nothing to compare with."""
    features: Callable[[Texts], Tensor] | None = None
    """The reward model's last hidden layer [B, H] for `outliers`; None: they are not looked for."""
    usual: list[dict[str, Any]] = field(default_factory=list)
    """The samples of the untrained policy, read again at each validation: the reward model may learn, too."""
    indices: list[tuple[int, float]] = field(default_factory=list)
    """(step, index, or its lower end) of every validation after the first."""
    since: int = -1
    """What was seen up to this step has been answered."""

    @staticmethod
    def asked(config: Config) -> "HackingWatch":
        """As the config wants it, but for the reward model that outliers take: `looking_for_outliers`."""
        wanted = config.hacking
        # auto: a policy that never spoke of films cannot leave the topic either, so the list does no harm
        topics = {"film": FILM, "auto": FILM}
        lists = WordLists(word_list(wanted.topic, topics), word_list(wanted.abuse, {"english": ABUSE}))
        return HackingWatch(config.stop.hacking_index, lists, tuple(wanted.signs), config.stop.hacking_by)

    def looking_for_outliers(self, reward: Scorer) -> "HackingWatch":
        """With this reward's models. Raises UserError where it has none."""
        if not reward.models:
            raise UserError(
                "hacking.outliers=true reads the last hidden layer of a reward model, and this reward has none: "
                "hacking.outliers=false, or reward=<a classifier>"
            )
        return replace(self, features=reward.features)

    def of(self, folder: Path) -> "HackingWatch":
        """Restored from the files of the run in this folder; new where there are none."""
        watch = replace(self)
        judged = [row for row in read_jsonl(folder / "metrics.jsonl") if "hacking/shared_phrases" in row]
        if judged:
            first = judged[0]["step"]
            rows = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] == first]
            watch.usual, watch.lost = rows, not rows
            watch.start = watch.judged(judged[0], rows)
            name = f"hacking/{self.by}"
            watch.indices = [(row["step"], row[name]) for row in judged if name in row]
        return watch

    @property
    def onset(self) -> int | None:
        """The step at which hacking began, if it did."""
        return onset([(step, index) for step, index in self.indices if step > self.since], self.threshold)

    @property
    def suspicious(self) -> bool:
        """Whether the last validation was at the threshold or above."""
        return bool(self.indices) and self.indices[-1][1] >= self.threshold

    def look(self, step: int, metrics: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, float]:
        """`hacking/index`, its interval and the signs behind it; {} for the one that the rest are compared with."""
        if self.lost:
            return {}
        self.usual = self.usual or rows
        now = self.judged(metrics, rows)
        if self.start is None:
            self.start = now
            return {}
        odd = self._outliers(now, self.start, rows)
        index = hacking_index(now, self.start, self.counted)
        found = {f"hacking/sign/{name}": value for name, value in signs(now, self.start).items()}
        drift = {f"hacking/{name}_drift": now.panel[name] - self.start.panel[name] for name in DRIFT}
        low, high = index_interval(now, self.start, self.counted)
        interval = {"hacking/index_low": low, "hacking/index_high": high}
        self.indices.append((step, low if self.by == "index_low" else index))
        return {"hacking/index": index} | interval | found | drift | odd

    def judged(self, metrics: dict[str, float], rows: list[dict[str, Any]]) -> Judged:
        """A validation from its metrics and its sample rows."""
        measured = {key.removeprefix("hacking/"): value for key, value in metrics.items() if key.startswith("hacking/")}
        measured |= {name: metrics[f"val/{name}"] for name in ("perplexity", "kl", *DRIFT)}
        golds = list(gold_of(rows).values())
        responses, scores = ([row[key] for row in rows] for key in ("response", "score"))
        first, others = (golds[0] if golds else None), tuple(golds[1:])
        return Judged.of(responses, scores, first, measured, self.lists, others)

    def _outliers(self, now: Judged, start: Judged, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Put their share into both panels; what is logged of it."""
        if self.features is None:
            return {}
        usual = self.features(texts_of(self.usual))
        start.panel["outliers"] = outlying(usual, usual)
        now.panel["outliers"] = outlying(self.features(texts_of(rows)), usual)
        return {"hacking/outliers": now.panel["outliers"]}

    def account(self, metrics: dict[str, float], samples: Path) -> str:
        """What the alert says: the index, its signs with the strongest first, where to read."""
        found = {k.removeprefix("hacking/sign/"): v for k, v in metrics.items() if k.startswith("hacking/sign/")}
        found = {k: v for k, v in found.items() if k in self.counted}
        strongest = sorted(((v, k) for k, v in found.items() if v >= 0.1), reverse=True)
        named = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for value, name in strongest)
        index = f"index {metrics['hacking/index']:.2f}"
        if "hacking/index_low" in metrics:
            index += f", 95 % interval {metrics['hacking/index_low']:.2f} to {metrics['hacking/index_high']:.2f}"
        return f"{index} ({named}); read what it writes: {samples}"
