"""The one record that every source of reviews yields."""

from dataclasses import dataclass
from typing import Literal

Sentiment = Literal["negative", "neutral", "positive"]
SENTIMENTS: tuple[Sentiment, ...] = ("negative", "neutral", "positive")


@dataclass(frozen=True, slots=True)
class Review:
    """One movie review.

    `id` names the review it comes from: two passages of one review share it, and no id is ever in both splits.
    `label` is what the source says of the whole review; None where the source does not say.
    `sentence_labels` is empty where the source knows only whole reviews; else one label a sentence.
    """

    id: str
    text: str
    label: Sentiment | None
    sentences: tuple[str, ...] = ()
    sentence_labels: tuple[Sentiment, ...] = ()
