"""From responses to rewards: the score of a reward model minus penalties, each part by itself."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.rewards.penalty import ngram_penalty

Score = Callable[["Texts"], Tensor]


@dataclass(frozen=True, slots=True)
class Texts:
    """What rewards may see of B rollouts. Special tokens are in none of the texts."""

    prefixes: list[str]
    prompts: list[str]
    """The whole prompt: role words kept, special tokens dropped."""
    responses: list[str]
    tokens: list[list[int]]
    """The policy's response tokens without the EOS."""

    def select(self, rows: Tensor) -> "Texts":
        chosen = rows.tolist()
        return Texts(*([column[i] for i in chosen] for column in self._columns()))

    @staticmethod
    def join(pieces: "list[Texts]") -> "Texts":
        return Texts(
            *([x for part in parts for x in part] for parts in zip(*(p._columns() for p in pieces), strict=False))
        )

    def _columns(self) -> tuple[list[Any], ...]:
        return self.prefixes, self.prompts, self.responses, self.tokens

    def view(self, kind: str) -> list[str]:
        """response | prefix_response | chat"""
        match kind:
            case "response":
                return self.responses
            case "prefix_response":
                return [joined(p, r) for p, r in zip(self.prefixes, self.responses, strict=True)]
            case _:
                return [p + r for p, r in zip(self.prompts, self.responses, strict=True)]


@dataclass(frozen=True, slots=True)
class Rewards:
    score: Float[Tensor, " B"]
    """The raw reward-model score."""
    reward: Float[Tensor, " B"]
    """After penalties, before any KL."""
    parts: dict[str, Float[Tensor, " B"]]
    """Each penalty, unweighted, by name."""

    def select(self, rows: Tensor) -> "Rewards":
        return Rewards(self.score[rows], self.reward[rows], {name: part[rows] for name, part in self.parts.items()})

    @staticmethod
    def join(pieces: "list[Rewards]") -> "Rewards":
        parts = {name: torch.cat([p.parts[name] for p in pieces]) for name in pieces[0].parts}
        return Rewards(torch.cat([p.score for p in pieces]), torch.cat([p.reward for p in pieces]), parts)


def joined(prefix: str, response: str) -> str:
    """The review as a reader sees it: one space between, none doubled, none before punctuation."""
    glued = not response or response[0].isspace() or response[0] in ".,!?;:'"
    return prefix + response if glued else f"{prefix} {response}"


@dataclass(frozen=True)
class Scorer:
    score: Score
    penalty_weight: float
    penalty_n: int
    penalty_level: str

    def __call__(self, texts: Texts) -> Rewards:
        score = self.score(texts).float()
        if not self.penalty_weight:
            return Rewards(score, score, {})
        words = [r.split() for r in texts.responses]
        sequences: list[Any] = texts.tokens if self.penalty_level == "token" else words
        penalty = torch.tensor([ngram_penalty(s, self.penalty_n) for s in sequences])
        return Rewards(score, score - self.penalty_weight * penalty, {"ngram": penalty})


def python_score(dotted: str) -> Score:
    """`module:function` with function(prompts, responses) -> list of floats."""
    module_name, _, name = dotted.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"reward.fn={dotted}: {error} (allowed: module:function, importable from here)") from error

    def score(texts: Texts) -> Tensor:
        values = [float(v) for v in function(texts.prompts, texts.responses)]
        if len(values) != len(texts.responses):
            raise ValueError(f"{dotted} gave {len(values)} scores for {len(texts.responses)} responses")
        if not all(math.isfinite(v) for v in values):
            raise ValueError(f"{dotted} gave a score that is not finite")
        return torch.tensor(values)

    return score
