"""VADER, a rule-based sentiment lexicon, as a labeler."""

from functools import cache
from typing import Any

from rlhf_cli.data.reviews import Sentiment


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader_scores(texts: list[str]) -> list[float]:
    """Compound scores in [-1, 1] (Hutto & Gilbert 2014)."""
    return [_analyzer().polarity_scores(text)["compound"] for text in texts]


def vader_labels(texts: list[str]) -> list[Sentiment]:
    """The authors' thresholds: positive from 0.05, negative to -0.05, neutral between."""
    return ["positive" if s >= 0.05 else "negative" if s <= -0.05 else "neutral" for s in vader_scores(texts)]
