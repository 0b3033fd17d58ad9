"""A reward while the response is being written: what each piece of it added to the score."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.rewards.scorer import Score, Texts


def increments(
    score: Score, texts: Texts, decode: Callable[[list[int], list[list[int]]], list[str]], *, every: int, width: int
) -> Float[Tensor, "B R"]:
    """At every `every`-th token, by how much the score of the response so far rose since the last such place.

    They telescope: with what is paid on the last token, the sum is the score of the whole response, so the best
    policy stays the same (potential-based shaping, Ng et al. 1999, with gamma 1); only the credit comes earlier. The
    first piece is paid its whole score. A response's last token is never among them. `decode(rows, tokens)`: the texts
    of the first tokens of these rows' responses, made as those of whole responses are.
    """
    paid = torch.zeros(len(texts.responses), width)
    before = torch.zeros(len(texts.responses))
    for length in range(every, max(map(len, texts.tokens), default=0), every):
        rows = [i for i, tokens in enumerate(texts.tokens) if len(tokens) > length]
        if not rows:
            break
        cut = [texts.tokens[i][:length] for i in rows]
        now = score(replace(texts.select(torch.tensor(rows)), responses=decode(rows, cut), tokens=cut)).float()
        paid[rows, length - 1] = now - before[rows]
        before[rows] = now
    return paid
