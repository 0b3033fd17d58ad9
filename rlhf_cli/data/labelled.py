"""Texts with a sentiment, for training classifiers: cut from reviews as long as what a policy writes."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rlhf_cli.data.lexicon import vader_labels, vader_scores
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment

Labelled = tuple[str, Sentiment]
SHORT = (4, 40)
"""Words of the shorter texts: a prefix and its continuation."""
NOTHING_SAID = 0.05
"""VADER's own threshold: a sentence whose compound score is below it says nothing, good or bad."""


@dataclass(frozen=True)
class LabelledTexts:
    """`whole`: each review's text under its own label. `short`: parts of it. `made`: how the labels came about."""

    whole: list[Labelled]
    short: list[Labelled]
    made: str

    def counts(self) -> dict[str, int]:
        found = Counter(label for _, label in [*self.whole, *self.short])
        return {name: found[name] for name in SENTIMENTS}


def labelled_texts(reviews: list[Review], *, seed: int) -> LabelledTexts:
    """Whole reviews, one short part of each that says what its review says, and one that says nothing where the source
    has no neutral reviews. All short parts are alike in length, or a classifier would take length for sentiment.

    A source labels sentences (the generated reviews do), whole reviews, or nothing; then VADER labels the texts, and
    a classifier can learn no more than the lexicon knows.
    """
    rng = random.Random(f"{seed}/labelled")
    if all(review.sentences for review in reviews):
        return LabelledTexts(_own_verdicts(reviews), _own_sentences(reviews, rng), "labels of the source, by sentence")
    if not all(review.label for review in reviews):
        texts = [review.text for review in reviews]
        parts = [part for review in reviews if (part := _part(review.text, lambda score: True, rng))]
        return LabelledTexts(
            list(zip(texts, vader_labels(texts), strict=True)),
            list(zip(parts, vader_labels(parts), strict=True)),
            "labels of the VADER lexicon: the source has none",
        )
    whole = [(review.text, review.label) for review in reviews if review.label]
    short = [(part, label) for text, label in whole if (part := _part(text, partial(_agrees, label), rng))]
    if any(label == "neutral" for _, label in whole):
        return LabelledTexts(whole, short, "labels of the source; of short parts where the VADER lexicon agrees")
    nothing = partial(_agrees, SENTIMENTS[1])  # sentences that say nothing are short: rather two of them than one
    neutral = [(part, SENTIMENTS[1]) for text, _ in whole if (part := _part(text, nothing, rng, (2, 1)))]
    made = (
        "positive and negative: labels of the source, of short parts only where the VADER lexicon agrees; neutral: "
        "short parts in which the VADER lexicon finds nothing"
    )
    return LabelledTexts(whole, [*short, *neutral], made)


def halves(reviews: list[Review], part: str) -> list[Review]:
    """The reviews of `first` or `second`, disjoint and the same for every seed; `all` of them. By the review that a
    passage comes from."""
    if part == "all":
        return reviews
    wanted = {"first": 0, "second": 1}[part]
    return [r for r in reviews if random.Random(f"half/{r.id}").getrandbits(1) == wanted]


def hold_out(reviews: list[Review], share: float, *, seed: int) -> tuple[list[Review], list[Review]]:
    """(to train on, held out): no review is on both sides."""
    ids = sorted({review.id for review in reviews})
    random.Random(f"{seed}/held out").shuffle(ids)
    held = set(ids[: max(1, round(share * len(ids)))])
    return [r for r in reviews if r.id not in held], [r for r in reviews if r.id in held]


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text) if len(s.split()) >= SHORT[0]] or [text]


def _part(text: str, wanted: Callable[[float], bool], rng: random.Random, sizes: Sequence[int] = (1,)) -> str | None:
    """So many sentences on end, the first of `sizes` that there are, cut to as many words as a response has, whose
    VADER score is as wanted."""
    sentences = _sentences(text)
    runs = []
    for n in sizes:
        some = [sentences[at : at + n] for at in range(len(sentences) - n + 1)]
        runs += rng.sample(some, len(some))
    cut = (" ".join(" ".join(run).split()[: SHORT[1]]) for run in runs)
    return next((part for part in cut if wanted(vader_scores([part])[0])), None)


def _agrees(label: Sentiment, score: float) -> bool:
    return label == ("neutral" if abs(score) < NOTHING_SAID else "positive" if score > 0 else "negative")


def _own_sentences(reviews: list[Review], rng: random.Random) -> list[Labelled]:
    return [rng.choice(list(zip(r.sentences, r.sentence_labels, strict=True))) for r in reviews]


def _own_verdicts(reviews: list[Review]) -> list[Labelled]:
    return [(review.text, review.label or review.sentence_labels[-1]) for review in reviews]
