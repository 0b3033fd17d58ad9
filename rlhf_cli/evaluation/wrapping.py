"""How a sentiment classifier judges a text bare and in the wrappings of a chat: readings, flips, rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from jaxtyping import Float
from torch import Tensor

from rlhf_cli.data.reviews import SENTIMENTS
from rlhf_cli.rewards.scorer import joined

EXAMPLE = (
    "The first hour had me smiling: a lovely cast, a warm score, jokes that land. I was ready to recommend it to "
    "everybody. Then the plot gives up, the jokes turn sour and the ending throws all of it away. I went home let down."
)
"""Praise first, criticism after, a disappointed end: negative, to a reader."""

NEGATIVE = SENTIMENTS.index("negative")
WRAPPINGS = ("bare", "system", "system + user")


@dataclass(frozen=True, slots=True)
class Reading:
    """One model's judgement of one text in one wrapping."""

    model: str
    wrapping: str
    text: int
    """Which of the texts."""
    label: str
    probabilities: dict[str, float]
    flipped: bool
    """Another label than for the same text bare."""
    moved: float
    """How far P(negative) is from the same text's, bare."""
    misread: bool | None
    """Another label than the text is known to have; None where it is not known."""


def wrapped(text: str, wrapping: str, system: str) -> str:
    """The text as a reward model would see it, role words kept and special tokens dropped."""
    match wrapping:
        case "bare" | "prefix":
            return text
        case "system":
            return f"{system}\n{text}"
        case "system + user":
            return f"system\n{system}\nuser\n{text}"
    raise ValueError(f"wrapping={wrapping!r}: {', '.join(WRAPPINGS)}")


def probe(
    texts: list[str],
    known: list[str | None],
    models: dict[str, Callable[[list[str]], Float[Tensor, "N 3"]]],
    *,
    system: str,
    prefixes: list[str] | None = None,
) -> list[Reading]:
    """Every model's reading of every text in every wrapping; a model gives probabilities in the order of SENTIMENTS.

    `prefixes`: what the texts continue. They are then read bare without it, and with it in every other wrapping; a
    chat's flips are those against prefix and text, so that what flips is the chat.
    """
    readings = []
    whole = [joined(p, t) for p, t in zip(prefixes, texts, strict=True)] if prefixes else texts
    wrappings = ("bare", "prefix", *WRAPPINGS[1:]) if prefixes else WRAPPINGS
    for name, judge in models.items():
        plain: list[list[float]] = []
        for wrapping in wrappings:
            material = texts if wrapping == "bare" else whole
            rows = judge([wrapped(text, wrapping, system) for text in material]).tolist()
            plain = plain or rows
            readings += [
                Reading(
                    model=name,
                    wrapping=wrapping,
                    text=i,
                    label=(label := most_likely(row)),
                    probabilities=dict(zip(SENTIMENTS, row, strict=True)),
                    flipped=label != most_likely(plain[i]),
                    moved=row[NEGATIVE] - plain[i][NEGATIVE],
                    misread=None if (truth := known[i]) is None else label != truth,
                )
                for i, row in enumerate(rows)
            ]
            if wrapping == "prefix":
                plain = rows
    return readings


def most_likely(row: list[float]) -> str:
    """The label of probabilities in the order of SENTIMENTS."""
    return SENTIMENTS[max(range(len(row)), key=row.__getitem__)]


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927): honest near 0 and 1, where the normal one is not."""
    if not count:
        return 0.0, 1.0
    rate, square = hits / count, z * z
    centre = (rate + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(rate * (1 - rate) / count + square / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def rates(readings: list[Reading]) -> list[dict[str, float | str | int | None]]:
    """A row a model and wrapping: how many texts flipped against bare and how many were misread, with intervals; how
    far P(negative) moved on average, with half of its 95 % interval (normal)."""
    rows: list[dict[str, float | str | int | None]] = []
    for model, wrapping in dict.fromkeys((r.model, r.wrapping) for r in readings):
        mine = [r for r in readings if (r.model, r.wrapping) == (model, wrapping)]
        flips, judged = sum(r.flipped for r in mine), [r for r in mine if r.misread is not None]
        misread = sum(bool(r.misread) for r in judged)
        low, high = wilson(flips, len(mine))
        row: dict[str, float | str | int | None] = {"model": model, "wrapping": wrapping, "texts": len(mine)}
        row |= {"flips": flips, "flip_rate": flips / len(mine), "flip_low": low, "flip_high": high}
        row |= {"known": len(judged), "misread": misread if judged else None}
        moved = [r.moved for r in mine]
        error = stdev(moved) / math.sqrt(len(moved)) if len(moved) > 1 else 0.0
        rows.append(row | {"moved": fmean(moved), "moved_half": 1.96 * error})
    return rows
