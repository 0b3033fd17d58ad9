"""Texts with a sentiment, for training classifiers: cut from reviews as long as what a policy writes."""

import random
import re
from collections import Counter
from dataclasses import dataclass

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
    """Whole reviews, one short part of each, and neutral sentences where the source has none of its own.

    A source labels sentences (the generated reviews do), whole reviews, or nothing; then VADER labels the texts, and
    a classifier can learn no more than the lexicon knows.
    """
    rng = random.Random(f"{seed}/labelled")
    if all(review.sentences for review in reviews):
        return LabelledTexts(_own_verdicts(reviews), _own_sentences(reviews, rng), "labels of the source, by sentence")
    parts = [_part(review.text, rng) for review in reviews]
    if not all(review.label for review in reviews):
        texts = [review.text for review in reviews]
        return LabelledTexts(
            list(zip(texts, vader_labels(texts), strict=True)),
            list(zip(parts, vader_labels(parts), strict=True)),
            "labels of the VADER lexicon: the source has none",
        )
    whole = [(review.text, review.label) for review in reviews if review.label]
    short = [(part, review.label) for part, review in zip(parts, reviews, strict=True) if review.label]
    if any(label == "neutral" for _, label in whole):
        return LabelledTexts(whole, short, "labels of the source")
    neutral = [(text, SENTIMENTS[1]) for review in reviews if (text := _saying_nothing(review.text, rng))]
    made = "positive and negative: labels of the source; neutral: sentences in which the VADER lexicon finds nothing"
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


def _part(text: str, rng: random.Random) -> str:
    """From the start of a sentence on, as many words as a response has."""
    sentences = _sentences(text)
    start = rng.randrange(len(sentences))
    return " ".join(" ".join(sentences[start:]).split()[: rng.randint(10, SHORT[1])])


def _saying_nothing(text: str, rng: random.Random) -> str | None:
    sentences = _sentences(text)
    rng.shuffle(sentences)
    scored = zip(sentences, vader_scores(sentences), strict=True)
    return next((" ".join(s.split()[: SHORT[1]]) for s, score in scored if abs(score) < NOTHING_SAID), None)


def _own_sentences(reviews: list[Review], rng: random.Random) -> list[Labelled]:
    return [rng.choice(list(zip(r.sentences, r.sentence_labels, strict=True))) for r in reviews]


def _own_verdicts(reviews: list[Review]) -> list[Labelled]:
    return [(review.text, review.label or review.sentence_labels[-1]) for review in reviews]
