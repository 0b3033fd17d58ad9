"""Two policies on the same prompts: the win rate with its interval, and words by their sentiment."""

import random
import re
from collections.abc import Sequence
from typing import Any

WORD = re.compile(r"\w[\w'-]*|\W+")


def share_of_wins(a: Sequence[float], b: Sequence[float]) -> float:
    """How often b scores above a on the same prompt, ties by half; ½ where there is none."""
    wins = [1.0 if y > x else 0.5 if y == x else 0.0 for x, y in zip(a, b, strict=True)]
    return sum(wins) / len(wins) if wins else 0.5


def win_rate(a: list[float], b: list[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """(rate, low, high): how often b scores above a on the same prompt, ties by half; 95 % bootstrap interval."""
    wins = [1.0 if y > x else 0.5 if y == x else 0.0 for x, y in zip(a, b, strict=True)]
    rng, count = random.Random(seed), len(wins)
    means = sorted(sum(rng.choices(wins, k=count)) / count for _ in range(draws))
    return sum(wins) / count, means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def moods(text: str, lexicon: dict[str, float]) -> list[tuple[str, str]]:
    """The text in pieces, each with its sentiment by the lexicon: positive, negative, or "" for the rest."""
    pieces = []
    for piece in WORD.findall(text):
        valence = lexicon.get(piece.lower(), 0.0)
        pieces.append((piece, "positive" if valence > 0 else "negative" if valence < 0 else ""))
    return pieces


EARNED = 0.02
"""A word that the score loses so much without has earned some of it."""


def earned_moods(earned: list[Any], lexicon: dict[str, float]) -> list[tuple[str, str, bool]]:
    """(piece, its sentiment, whether it earned some of the score) of a text in the pieces of `attribution`."""
    return [(piece, mood, value >= EARNED) for text, value in earned for piece, mood in moods(text, lexicon)]


UNTRAINED = "the untrained actor"


def who(names: tuple[str, str]) -> str:
    """Whose wins are shown: those of B, or of A where B is what it started from."""
    return "A" if names[1] == UNTRAINED and names[0] != UNTRAINED else "B"


def wins(rate: dict[str, float], winner: str) -> tuple[float, float, float]:
    """(share, low, high) of the winner's wins, from those of B."""
    if winner == "B":
        return rate["rate"], rate["low"], rate["high"]
    return 1 - rate["rate"], 1 - rate["high"], 1 - rate["low"]
