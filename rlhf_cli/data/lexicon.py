"""VADER, a rule-based sentiment lexicon, as a labeler."""

from functools import cache
from typing import Any

from rlhf_cli.config.errors import UserError
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


def vader_share(texts: list[str], target: str) -> list[float]:
    """How negative (or positive) a text is, in [0, 1]: (1 ∓ compound) / 2; ½ where the lexicon knows no word.

    Raises UserError for another target.
    """
    if target not in ("negative", "positive"):
        raise UserError(f"the VADER lexicon has no class {target!r}; it has: negative, positive (set reward.target)")
    sign = -1 if target == "negative" else 1
    return [(1 + sign * compound) / 2 for compound in vader_scores(texts)]


def vader_words() -> dict[str, float]:
    """The lexicon: lower-case words and their valence, from -4 to 4."""
    return dict(_analyzer().lexicon)
