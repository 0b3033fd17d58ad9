"""InstructGPT's pretraining mix: text that the policy must stay good at while it is rewarded for something else."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.rl.head import token_logprobs
from rlhf_cli.rl.randomness import permutation

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

    def loss(self, lab: Any, step: int) -> Callable[[int], Tensor]:
        """A function of the optimizer step's number in this step: −weight · mean log π of a batch's tokens."""

        def of(number: int) -> Tensor:
            # a shuffle of its own for every update: nothing to save for a resume
            order = permutation(self.seed + 17, step, number, len(self.texts))[: self.batch_size].tolist()
            return self.weight * self._nll(lab, [self.texts[i] for i in order])

        return of

    @torch.no_grad()
    def perplexity(self, lab: Any) -> float:
        return math.exp(float(self._nll(lab, self.held_out)))

    def _nll(self, lab: Any, rows: list[list[int]]) -> Tensor:
        """Mean negative log-prob of all tokens after the first."""
        device, width = lab.compute.device, max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        inside = torch.arange(width - 1, device=device) < lengths[:, None] - 1
        with lab.compute.autocast():
            # right padding: what comes after never reaches a causal model's earlier tokens
            states = lab.actor.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][inside]
            head = lab.actor.get_output_embeddings().weight
            logprobs, _ = token_logprobs(states, head, ids[:, 1:][inside], temperature=1.0)
        return -logprobs.mean()
