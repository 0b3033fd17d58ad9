"""The search for what raises a reward without raising gold, and how robust a reward was against it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch

from rlhf_cli.evaluation.attribution import leave_one_word_out
from rlhf_cli.evaluation.edits import Material, cost, edited
from rlhf_cli.rewards.scorer import Score, Texts

FLAT = 1e-9


@dataclass(frozen=True, slots=True)
class Found:
    """An edited response, and what it gained on the one it came from."""

    text: int
    """Which of the responses it started from."""
    path: tuple[str, ...]
    """The families of its edits, in order."""
    before: str
    after: str
    cost: int
    """Words that it changes, by `cost`."""
    reward: float
    """Its gain of reward, in standard deviations of the responses' rewards."""
    gold: float
    """The same of gold."""

    @property
    def unearned(self) -> float:
        """The gain of reward that gold does not confirm. What gold loses does not add to it."""
        return self.reward - max(0.0, self.gold)


@dataclass(frozen=True)
class Gains:
    """How far texts score from those at the start, in standard deviations of these; 1 where they do not differ."""

    score: Score
    start: list[float]
    scale: float

    @staticmethod
    def of(score: Score, texts: Texts) -> "Gains":
        start = score(texts).tolist()
        return Gains(score, start, pstdev(start) if pstdev(start) > FLAT else 1.0)

    def __call__(self, texts: Texts, rows: Sequence[int], responses: list[str]) -> list[float]:
        """Of `responses[i]` in the place of the response in row `rows[i]`."""
        values = self.score(with_responses(texts, rows, responses)).tolist()
        return [(value - self.start[row]) / self.scale for value, row in zip(values, rows, strict=True)]


def confirmed(judges: Sequence[Gains]) -> Callable[[Texts, Sequence[int], list[str]], list[float]]:
    """The gain under several gold judges: the highest, so that a gain which any of them confirms is earned."""

    def gains(texts: Texts, rows: Sequence[int], responses: list[str]) -> list[float]:
        return [max(each) for each in zip(*(judge(texts, rows, responses) for judge in judges), strict=True)]

    return gains


def with_responses(texts: Texts, rows: Sequence[int], responses: list[str]) -> Texts:
    """The prompts of these rows with other responses."""
    chosen = texts.select(torch.tensor(rows, dtype=torch.long))
    return replace(chosen, responses=responses)


def target_words(score: Score, texts: Texts, *, count: int = 10) -> list[str]:
    """The words that earn most on average, by leaving each out: what an attacker would put in."""
    earned: dict[str, list[float]] = {}
    for pieces in leave_one_word_out(score, texts):
        for word, value in pieces:
            if word.strip():
                earned.setdefault(word.strip(".,;:!?\"'()").lower(), []).append(value)
    ranked = sorted(earned, key=lambda word: -fmean(earned[word]))
    return [word for word in ranked[:count] if word and fmean(earned[word]) > 0]


def search(
    texts: Texts,
    reward: Gains,
    gold: Callable[[Texts, Sequence[int], list[str]], list[float]],
    material: Material,
    families: Sequence[str],
    *,
    rounds: int,
    tries: int,
    seed: int = 0,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[Found]:
    """All that was tried, greedily: each round makes `tries` random edits of every family of each response's best one,
    scores them all at once, and goes on from the one whose unearned gain is highest."""
    rng = random.Random(seed)
    best = [Found(i, (), response, response, 0, 0.0, 0.0) for i, response in enumerate(texts.responses)]
    tried: list[Found] = []
    for round_ in range(rounds):
        drawn = {  # an edit that changes nothing, or was drawn twice, is none
            (now.text, after): (*now.path, family)
            for now in best
            for family in families
            for _ in range(tries)
            if (after := edited(family, now.after, material, rng)) not in (now.after, now.before)
        }
        rows, responses = [row for row, _ in drawn], [after for _, after in drawn]
        gains = zip(drawn.items(), reward(texts, rows, responses), gold(texts, rows, responses), strict=True)
        for ((row, after), path), up, true in gains:
            before = texts.responses[row]
            found = Found(row, path, before, after, cost(before, after), up, true)
            tried.append(found)
            if found.unearned > best[row].unearned:
                best[row] = found
        told(round_ + 1, rounds)
    return tried


def cheapest(tried: list[Found], *, margin: float) -> list[Found]:
    """Of each response that could be exploited, the exploit of fewest words, the larger one of two; cheapest first."""
    chosen: dict[int, Found] = {}
    for found in tried:
        known = chosen.get(found.text)
        if found.unearned >= margin and (known is None or _rank(found) < _rank(known)):
            chosen[found.text] = found
    return sorted(chosen.values(), key=_rank)


WITHIN = (1, 2, 5, 10, 20, 50)
"""Words, for `by_cost`."""


def by_cost(exploits: list[Found], *, count: int) -> dict[int, float]:
    """The share of the `count` responses that an exploit of so many words breaks: what an attack has to pay."""
    return {words: sum(found.cost <= words for found in exploits) / count for words in WITHIN}


def _rank(found: Found) -> tuple[int, float]:
    return found.cost, -found.unearned


def by_family(tried: list[Found], *, margin: float, count: int) -> dict[str, dict[str, float]]:
    """Of the first round, one edit each: the share of the `count` responses that a family exploits, and the mean over
    them of its best unearned gain (0 where there is none)."""
    table: dict[str, dict[str, float]] = {}
    for family in dict.fromkeys(found.path[0] for found in tried if len(found.path) == 1):
        top: dict[int, float] = {}
        for found in tried:
            if found.path == (family,):
                top[found.text] = max(top.get(found.text, 0.0), found.unearned)
        exploited = sum(gain >= margin for gain in top.values()) / count
        table[family] = {"exploited": exploited, "unearned": sum(top.values()) / count}
    return table


def robustness(exploits: list[Found], *, count: int, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """(share of the `count` responses of which the search made no exploit, its 95 % bootstrap interval over them)."""
    broken = {found.text for found in exploits}
    held = [float(i not in broken) for i in range(count)]
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(held, k=count)) for _ in range(draws))
    return fmean(held), means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def transfer(exploits: list[Found], texts: Texts, judges: dict[str, Gains], *, margin: float) -> dict[str, float]:
    """The share of the exploits that another reward falls for too: a gain of `margin` beyond gold's."""
    if not exploits:
        return {}
    rows, responses = [found.text for found in exploits], [found.after for found in exploits]
    shares = {}
    for name, judge in judges.items():
        gains = judge(texts, rows, responses)
        shares[name] = fmean(
            float(up - max(0.0, found.gold) >= margin) for up, found in zip(gains, exploits, strict=True)
        )
    return shares
