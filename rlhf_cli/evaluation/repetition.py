"""Metrics of generated text."""

from collections.abc import Sequence

from rlhf_cli.rewards.penalty import ngram_penalty


def repetition(text: str, n: int = 3) -> float:
    """1 − distinct/total word n-grams; 0 where there is none."""
    return ngram_penalty(text.split(), n)


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct/total word n-grams over all texts (Li et al. 2016); 0 where there is none."""
    grams = [tuple(w[i : i + n]) for t in texts for w in [t.split()] for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
