"""The n-gram repetition penalty."""

from collections.abc import Hashable, Sequence


def ngram_penalty(sequence: Sequence[Hashable], n: int) -> float:
    """(total − distinct n-grams) / (len − n + 1), in [0, 1); 0 for a sequence shorter than n."""
    total = len(sequence) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(sequence[i : i + n]) for i in range(total)})
    return (total - distinct) / total


def overlong_penalty(length: int, *, limit: int, buffer: int) -> float:
    """DAPO's soft punishment (Yu et al. 2025, eq. 13), as a positive number: 0 up to limit − buffer tokens, then
    rising to 1 at the limit; `buffer` 0 is off."""
    return max(0.0, (length - (limit - buffer)) / buffer) if buffer else 0.0
