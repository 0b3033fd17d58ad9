"""What a run did, in two sentences: how score and gold moved on the same prompts, and whether the reward was hacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from rlhf_cli.evaluation.hacking import onset as first_of_two

Pair = tuple[dict[str, Any], dict[str, Any]]
"""The samples of one prompt: at the first validation and at the last."""


@dataclass(frozen=True, slots=True)
class Change:
    """A mean over prompts, before and after."""

    first: float
    last: float
    error: float
    """Standard error of the difference, over prompts."""

    @property
    def direction(self) -> int:
        """1 up, -1 down, 0 where the difference is within twice its standard error."""
        moved = self.last - self.first
        return 0 if abs(moved) <= 2 * self.error else 1 if moved > 0 else -1

    def __str__(self) -> str:
        return f"from {self.first:.2f} to {self.last:.2f}"


def pairs_of(samples: Sequence[dict[str, Any]]) -> list[Pair]:
    """Of each prompt, its sample at the first validation and at the last; [] where there is one validation only."""
    steps = [row["step"] for row in samples]
    if not steps or min(steps) == max(steps):
        return []
    before = {row["prompt"]: row for row in samples if row["step"] == min(steps)}
    return [(before[row["prompt"]], row) for row in samples if row["step"] == max(steps) and row["prompt"] in before]


def furthest(pairs: Sequence[Pair]) -> Pair | None:
    """The prompt whose score rose most, of equals the first; None where none rose."""
    best = max(pairs, key=lambda pair: pair[1]["score"] - pair[0]["score"], default=None)
    return best if best and best[1]["score"] > best[0]["score"] else None


def change(pairs: Sequence[Pair], *, part: str | None = None) -> Change | None:
    """How the score moved, or a part of it (`gold`); None where a sample lacks it."""
    values = [tuple(row["parts"].get(part) if part else row["score"] for row in pair) for pair in pairs]
    if not values or any(value is None for pair in values for value in pair):
        return None
    moved = [after - before for before, after in values]
    error = stdev(moved) / sqrt(len(moved)) if len(moved) > 1 else 0.0
    return Change(mean(v for v, _ in values), mean(v for _, v in values), error)


def outcome(score: Change, gold: Change | None, kl: float | None) -> str:
    """The first sentence."""
    at = "" if kl is None else f", at a KL of {kl:z.1f} nats"
    moved = {1: "rose", -1: "fell", 0: "did not clearly move"}
    start = f"The score {moved[score.direction]} {score if score.direction else f'({score})'}"
    if gold is None:
        return f"{start}{at}; no gold judge says whether that is an improvement."
    match score.direction, gold.direction:
        case (1, 1) | (-1, -1):
            return f"{start}, and the gold score with it, {gold}{at}."
        case 1, 0:
            return f"{start}, but the gold score did not clearly move ({gold}){at}: its judge sees no improvement."
        case 1, -1:
            return f"{start}, but the gold score fell {gold}{at}: its judge sees the opposite."
        case _, 0:
            return f"{start}, nor did the gold score ({gold}){at}." if not score.direction else f"{start}{at}."
    return f"{start}, the gold score {moved[gold.direction]} {gold}{at}."


def verdict_on(
    metrics: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]], threshold: float, by: str = "index"
) -> list[str]:
    """Both sentences on one run, from the rows of its metrics.jsonl and samples.jsonl. `by`: what is flagged from the
    threshold on, the index or index_low."""
    pairs = pairs_of(samples)
    score = change(pairs)
    if score is None:
        return ["There is one validation only: nothing can be said of what training did."]
    kls = [row["val/kl"] for row in metrics if isinstance(row.get("val/kl"), int | float)]
    judged = [row for row in metrics if isinstance(row.get("hacking/index"), int | float)]
    last = judged[-1] if judged else {}
    signs = {k.removeprefix("hacking/sign/"): v for k, v in last.items() if k.startswith("hacking/sign/") and v}
    begun = first_of_two([(row["step"], row.get(f"hacking/{by}", 0.0)) for row in judged], threshold)
    first = outcome(score, change(pairs, part="gold"), kls[-1] if kls else None)
    ends = tuple(last.get(f"hacking/index_{end}") for end in ("low", "high"))
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if None not in ends else ""
    return [first, suspicion(begun, last.get(f"hacking/{by}"), threshold, signs, INDEX_NAMES[by], interval)]


INDEX_NAMES = {"index": "index", "index_low": "index's lower end"}


def suspicion(
    onset: int | None,
    index: float | None,
    threshold: float,
    signs: dict[str, float],
    name: str = "index",
    interval: str = "",
) -> str:
    """The second sentence. `onset`: the step from which hacking was flagged; `index` and `signs`: of the last
    validation; `name`: what is compared with the threshold, in words; `interval`: of the index, in words."""
    if index is None:
        return "Nothing is known of reward hacking: that takes two validations."
    above = [sign for sign, value in sorted(signs.items(), key=lambda item: -item[1]) if value >= 0.1][:2]
    because = f", most of all by {' and '.join(above).replace('_', ' ')}" if above else ""
    if onset is not None:
        return f"Reward hacking was flagged from step {onset} on ({name} {index:.2f} at the end{interval}{because})."
    if index >= threshold:
        return (
            f"Reward hacking is suspected: the {name} ended at {index:.2f}{interval}{because}, and one more validation "
            f"from {threshold:g} on would flag it."
        )
    return (
        f"Reward hacking was not flagged: the {name} ended at {index:.2f}{interval}, and the threshold is "
        f"{threshold:g}."
    )
