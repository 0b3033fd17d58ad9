"""InstructGPT's pretraining mix: a language-modelling loss on other text beside the RL loss."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.read import read
from rlhf_cli.rl.randomness import permutation
from rlhf_cli.rl.rollout import Rollout

HELD_OUT = 64
LONGEST = 256
"""Tokens of a text."""


@dataclass(frozen=True)
class Pretraining:
    """`weight` · E[log π(x)] (Ouyang et al. 2022, eq. 2), x from `texts`; perplexity is on `held_out`."""

    texts: list[list[int]]
    held_out: list[list[int]]
    weight: float
    batch_size: int
    seed: int

    @classmethod
    def make(cls, texts: list[str], tokenizer: Any, *, weight: float, batch_size: int, seed: int) -> "Pretraining":
        ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"])[:LONGEST] for text in texts]
        ids = [row for row in ids if len(row) > 1]
        held = min(HELD_OUT, len(ids) // 2)
        return cls(ids[held:], ids[:held], weight, batch_size, seed)

    def loss(self, model: Any, compute: Compute, step: int, number: int) -> Tensor:
        """−weight · mean log π of a batch's tokens, for the `number`-th update of a training step."""
        # a shuffle of its own for every update: nothing to save for a resume
        order = permutation(self.seed + 17, step, number, len(self.texts))[: self.batch_size].tolist()
        return self.weight * self._nll(model, compute, [self.texts[i] for i in order])

    @torch.no_grad()
    def perplexity(self, model: Any, compute: Compute, rows: int) -> float:
        """On the held-out texts, `rows` at a time."""
        total, tokens = 0.0, 0
        for at in range(0, len(self.held_out), rows):
            some = self.held_out[at : at + rows]
            count = sum(len(text) - 1 for text in some)
            total, tokens = total + count * float(self._nll(model, compute, some)), tokens + count
        return math.exp(total / tokens)

    def _nll(self, model: Any, compute: Compute, rows: list[list[int]]) -> Tensor:
        """Mean negative log-prob of all tokens after the first."""
        width, one = max(map(len, rows)), torch.ones(len(rows), dtype=torch.long)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows]) - 1
        text = Rollout(ids[:, :1], one, ids[:, 1:], lengths, one > 0, torch.zeros(len(rows), width - 1), one.cumsum(0))
        text = text.to(compute.device)
        with compute.autocast():
            logprobs = read(model, text, temperature=1.0).logprobs
        return -logprobs[text.mask].mean()
