"""Attribution by leave-one-out: which words earned the score."""

import re
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.evaluation.win_rate import EARNED
from rlhf_cli.rewards.scorer import Texts

WORD = re.compile(r"\S+")

Earned = list[tuple[str, float]]
"""A text in pieces, in order; each word with what the score loses without it, white space with 0."""


def leave_one_word_out(score: Callable[[Texts], Float[Tensor, " N"]], texts: Texts) -> list[Earned]:
    """score(response) − score(response without the word), for every word of every response (Li et al. 2016).

    Works for any reward that reads text, and asks it once a word. The parts do not add up to the score: of two
    redundant words neither is missed alone.
    """
    words = [list(WORD.finditer(response)) for response in texts.responses]
    rows = [i for i, found in enumerate(words) for _ in (None, *found)]
    versions = [
        response[: cut.start()] + response[cut.end() :] if cut else response
        for response, found in zip(texts.responses, words, strict=True)
        for cut in (None, *found)
    ]
    without = texts.select(torch.tensor(rows, dtype=torch.long))
    without = Texts(without.prefixes, without.prompts, versions, without.tokens)
    values = iter(score(without).tolist() if versions else [])
    earned = []
    for response, found in zip(texts.responses, words, strict=True):
        whole = next(values)
        pieces: Earned = []
        at = 0
        for word in found:
            pieces += [(response[at : word.start()], 0.0)] if word.start() > at else []
            pieces.append((word.group(), whole - next(values)))
            at = word.end()
        earned.append(pieces + ([(response[at:], 0.0)] if at < len(response) else []))
    return earned


def earners(earned: Earned, *, count: int = 5, least: float = EARNED) -> Earned:
    """The words that earned most, at least `least` each."""
    return sorted((piece for piece in earned if piece[1] >= least), key=lambda piece: -piece[1])[:count]
