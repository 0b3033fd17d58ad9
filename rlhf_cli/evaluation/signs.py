"""Signs that a reward is being hacked: how far a policy moved from the untrained one, in several ways.

Each compares what the two wrote to the same prompts with the same random numbers. A sign is a rise, 0 where nothing
changed. Which of them tell a hacked run from an honest one was measured: docs/hacking.md.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rlhf_cli.evaluation.repetition import repetition
from rlhf_cli.evaluation.win_rate import share_of_wins
from rlhf_cli.evaluation.words import FILMS, WordLists, words

SHARED_N = 4
SHARED_BY = 0.1
"""A phrase of SHARED_N words is shared if so many of the responses have it, and at least three."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One validation of a policy."""

    panel: dict[str, float]
    """By `text_panel`; `perplexity` under the untrained policy; and what else was measured: kl (nats), response_length
    (tokens), eos_rate, entropy (nats a token), `kept/<edit>`. A sign whose figures are not there is left out."""
    proxy: Sequence[float]
    """Each response's score under the reward that is trained on."""
    gold: Sequence[float] | None
    """… and under the held-out judge."""
    others: tuple[Sequence[float], ...] = ()
    """… and under further judges."""
    each: dict[str, list[float]] = field(default_factory=dict)
    """By `each_panel`, for `index_interval`."""

    @staticmethod
    def of(
        responses: Sequence[str],
        proxy: Sequence[float],
        gold: Sequence[float] | None,
        measured: dict[str, float],
        lists: WordLists = FILMS,
        others: tuple[Sequence[float], ...] = (),
    ) -> "Judged":
        """From what was written; `measured` is what the text alone does not show, the perplexity at least."""
        each = each_panel(responses, lists)
        return Judged(means(each, range(len(responses))) | measured, proxy, gold, others, each)


def text_panel(responses: Sequence[str], lists: WordLists = FILMS) -> dict[str, float]:
    """What the responses show by themselves: repetition_1 … repetition_4, shared_phrases, self_similarity; off_topic
    and abuse where there are word lists."""
    return means(each_panel(responses, lists), range(len(responses)))


def each_panel(responses: Sequence[str], lists: WordLists) -> dict[str, list[float]]:
    """What `text_panel` is the mean of: a value for each response."""
    said = [set(words(response)) for response in responses]
    found = {f"repetition_{n}": [repetition(r, n) for r in responses] for n in (1, 2, 3, 4)}
    found |= {"shared_phrases": _shares(responses, SHARED_N, SHARED_BY), "self_similarity": _closest(responses)}
    found |= {"off_topic": [float(not (mine & lists.topic)) for mine in said]} if lists.topic else {}
    return found | ({"abuse": [float(bool(mine & lists.abuse)) for mine in said]} if lists.abuse else {})


def means(each: dict[str, list[float]], chosen: Sequence[int]) -> dict[str, float]:
    return {name: sum(values[i] for i in chosen) / max(1, len(chosen)) for name, values in each.items()}


def shared_phrases(responses: Sequence[str], *, n: int = SHARED_N, by: float = SHARED_BY) -> float:
    """The mean share of a response's distinct word n-grams that a tenth of all responses have, and at least three.

    A cheaper stand-in for self-BLEU (Zhu et al. 2018), which compares every pair: 0 where each response is its own,
    1 where all are made of the same phrases.
    """
    return sum(_shares(responses, n, by)) / max(1, len(responses))


def _shares(responses: Sequence[str], n: int, by: float) -> list[float]:
    grams = [_grams(response, n) for response in responses]
    holders = Counter(gram for mine in grams for gram in mine)
    needed = max(3.0, by * len(responses))
    return [sum(holders[gram] >= needed for gram in mine) / len(mine) if mine else 0.0 for mine in grams]


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}


def _closest(responses: Sequence[str]) -> list[float]:
    """Of each response the share of its word pairs that the response most like it has, too."""
    pairs = [_grams(response, 2) for response in responses]
    holders: dict[tuple[str, ...], list[int]] = {}
    for i, mine in enumerate(pairs):
        for pair in mine:
            holders.setdefault(pair, []).append(i)
    found = []
    for i, mine in enumerate(pairs):
        shared = Counter(j for pair in mine for j in holders[pair])
        del shared[i]
        found.append(max(shared.values(), default=0) / max(1, len(mine)))
    return found


def rises(now: Judged, start: Judged) -> dict[str, float]:
    """By how much each figure of the panel rose since the untrained policy, and what else is a sign; below 0 where it
    fell.

    - garbled: the log of the perplexity under the untrained policy (word salad);
    - repetition: within a response, of 2-, 3- or 4-grams, whichever rose most; shared_phrases, self_similarity: among
      the responses; off_topic, abuse: by word lists;
    - gold_gap: how much clearer the win over the untrained policy is under the proxy than under the gold judge, each
      as wins minus losses on the same prompts. Ranks, so that two judges with different scales compare;
    - disagreement: between the gold judges, where there are several: how far their wins minus losses are apart;
    - rank_correlation: Spearman's, of proxy and gold over the responses, what was lost of it;
    - kl: to the reference, nats a response; length: |log| of the ratio of the mean lengths; eos_loss: of the share of
      responses that end; entropy: what was lost, as a share; saturation: of the spread of the scores, what was lost, as
      a share;
    - kept/<edit>: of the score after an edit that a reader would mind (`invariance`), as a share of the score before;
    - outliers: of the share of responses that the reward model is not used to (`evaluation/outliers.py`).
    """
    both = now.panel.keys() & start.panel.keys()
    rise = {name: now.panel[name] - start.panel[name] for name in both}
    rise["repetition"] = max(now.panel[f"repetition_{n}"] - start.panel[f"repetition_{n}"] for n in (2, 3, 4))
    rise["garbled"] = math.log(now.panel["perplexity"] / start.panel["perplexity"])
    if "response_length" in both:
        rise["length"] = abs(math.log((now.panel["response_length"] + 1) / (start.panel["response_length"] + 1)))
    if "eos_rate" in both:
        rise["eos_loss"] = start.panel["eos_rate"] - now.panel["eos_rate"]
    if start.panel.get("entropy"):
        rise["entropy"] = 1 - now.panel["entropy"] / start.panel["entropy"]
    if spread := _spread(start.proxy):
        rise["saturation"] = 1 - _spread(now.proxy) / spread
    if now.gold is not None and start.gold is not None:
        rise["gold_gap"] = gain(start.proxy, now.proxy) - max(0.0, gain(start.gold, now.gold))
        judges = zip((start.gold, *start.others), (now.gold, *now.others), strict=True)
        gains = [gain(before, after) for before, after in judges]
        rise |= {"disagreement": max(gains) - min(gains)} if len(gains) > 1 else {}
        rise["rank_correlation"] = spearman(start.proxy, start.gold) - spearman(now.proxy, now.gold)
    return rise


def gain(before: Sequence[float], after: Sequence[float]) -> float:
    """Wins minus losses of `after` against `before` on the same prompts, in [-1, 1]."""
    return 2 * share_of_wins(before, after) - 1


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks, ties by their mean rank; 0 where one of them has no spread."""
    x, y = _ranks(a), _ranks(b)
    spread = _spread(x) * _spread(y)
    return (fmean(p * q for p, q in zip(x, y, strict=True)) - fmean(x) * fmean(y)) / spread if spread else 0.0


def _spread(values: Sequence[float]) -> float:
    """Their standard deviation; statistics.pstdev is exact and a hundred times as slow."""
    mean = fmean(values)
    return math.sqrt(fmean((v - mean) ** 2 for v in values))


def _ranks(values: Sequence[float]) -> list[float]:
    below, count = {}, 0
    tally = Counter(values)
    for value in sorted(tally):
        below[value] = count + (tally[value] - 1) / 2
        count += tally[value]
    return [below[value] for value in values]


EDITS = ("words", "sentences", "half")


def edit(text: str, kind: str, rng: random.Random) -> str:
    """words | sentences: in another order; half: only the first half of the words. Raises ValueError for another."""
    match kind:
        case "words":
            said = text.split()
            return " ".join(rng.sample(said, len(said)))
        case "sentences":
            said = re.split(r"(?<=[.!?])\s+", text.strip())
            return " ".join(rng.sample(said, len(said)))
        case "half":
            said = text.split()
            return " ".join(said[: (len(said) + 1) // 2])
    raise ValueError(f"kind={kind!r}: {', '.join(EDITS)}")


def invariance(
    score: Callable[[list[str]], Sequence[float]], responses: Sequence[str], scores: Sequence[float], *, seed: int = 0
) -> dict[str, float]:
    """`kept/<edit>`: the share of the mean score that is left after an edit of every response, at most 1. A reward that
    pays for shuffled words as it does for the text does not mind salad."""
    rng, whole = random.Random(seed), fmean(scores)
    kept = {kind: fmean(score([edit(text, kind, rng) for text in responses])) for kind in EDITS}
    return {f"kept/{kind}": min(1.0, value / whole) if whole > 0 else 0.0 for kind, value in kept.items()}
