"""From responses to rewards: the score of a reward model minus penalties, each part by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.config.dotted import function_named
from rlhf_cli.config.errors import RunFailed
from rlhf_cli.engine.finite import check_finite
from rlhf_cli.rewards.combine import additive_shares, apart, combined, setting_shares, shaped
from rlhf_cli.rewards.penalty import ngram_penalty, overlong_penalty
from rlhf_cli.rl.moments import RunningMoments

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
    """Saturated, capped and after penalties, before any KL."""
    parts: dict[str, Float[Tensor, " B"]]
    """Each penalty, unweighted, by name."""
    sources: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    """What the score is made of, unweighted, by name; empty where it has one source."""

    def select(self, rows: Tensor) -> "Rewards":
        parts, sources = ({name: x[rows] for name, x in table.items()} for table in (self.parts, self.sources))
        return Rewards(self.score[rows], self.reward[rows], parts, sources)

    @staticmethod
    def join(pieces: "list[Rewards]") -> "Rewards":
        first = pieces[0]
        parts = {name: torch.cat([p.parts[name] for p in pieces]) for name in first.parts}
        sources = {name: torch.cat([p.sources[name] for p in pieces]) for name in first.sources}
        return Rewards(torch.cat([p.score for p in pieces]), torch.cat([p.reward for p in pieces]), parts, sources)


def joined(prefix: str, response: str) -> str:
    """The review as a reader sees it: one space between, none doubled, none before punctuation."""
    glued = not response or response[0].isspace() or response[0] in ".,!?;:'"
    return prefix + response if glued else f"{prefix} {response}"


@dataclass(frozen=True)
class ModelScore:
    """A source that is a model: its scores and, for outliers, its last hidden layer, both of one view of the texts."""

    view: str
    read: Callable[[list[str]], Float[Tensor, " B"]]
    states: Callable[[list[str]], Float[Tensor, "B H"]]

    def __call__(self, texts: Texts) -> Float[Tensor, " B"]:
        return self.read(texts.view(self.view))

    def features(self, texts: Texts) -> Float[Tensor, "B H"]:
        return self.states(texts.view(self.view))


@dataclass(frozen=True)
class Scorer:
    """The weighted sources of a reward, combined; and the n-gram penalties that are taken off it."""

    sources: dict[str, Score]
    weights: dict[str, float]
    combine: str = "sum"
    """sum | normalised_sum | mean | min | uncertainty: see `combined`."""
    aversion: float = 1.0
    """Of uncertainty."""
    moments: RunningMoments | None = None
    """Running statistics of a normalised_sum; None: within each group."""
    shapes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """The saturation and the cap of each source that has one: of the reward, not of the raw score."""
    penalty_weight: float = 0.0
    penalty_n: tuple[int, ...] = (3,)
    penalty_level: str = "token"
    overlong_buffer: int = 0
    """Tokens before a response's limit over which DAPO's soft punishment grows to 1; 0: none."""
    every_tokens: int = 0
    """A process reward pays what each so many tokens added; 0: all at the end."""

    def score(self, texts: Texts) -> Float[Tensor, " B"]:
        """What the sources make of the texts, before any penalty."""
        return self._combined(self._values(texts))

    def paid(self, texts: Texts) -> Float[Tensor, " B"]:
        """The reward before any penalty: the sources saturated and capped."""
        return self._combined(self._shaped(self._values(texts)))

    def _combined(self, values: dict[str, Tensor]) -> Tensor:
        return combined(values, self.weights, self.combine, aversion=self.aversion)

    def _shaped(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: shaped(value, **self.shapes.get(name, {})) for name, value in values.items()}

    def _values(self, texts: Texts) -> dict[str, Tensor]:
        values = {name: source(texts).float() for name, source in self.sources.items()}
        for name, value in values.items():
            check_finite(f"a reward of {name} is", value, texts=texts, scores=value)
        return values

    @property
    def models(self) -> list[ModelScore]:
        """The sources that are models."""
        return [source for source in self.sources.values() if isinstance(source, ModelScore)]

    def features(self, texts: Texts) -> Float[Tensor, "B H"]:
        """The last hidden layers of the models, side by side."""
        return torch.cat([model.features(texts) for model in self.models], dim=1)

    def __call__(self, texts: Texts, *, lengths: Tensor | None = None, limit: int = 0) -> Rewards:
        """`lengths`: of the responses, in tokens, of which `limit` are the most; given where overlong ones pay."""
        values = self._values(texts)
        score, reward = self._combined(values), self._combined(self._shaped(values))
        shown = values if len(values) > 1 else {}
        parts: dict[str, Tensor] = {}
        if self.penalty_weight:
            penalty, parts = self._ngrams(texts)
            reward = reward - self.penalty_weight * penalty
        if self.overlong_buffer and lengths is not None:
            found = [overlong_penalty(n, limit=limit, buffer=self.overlong_buffer) for n in lengths.tolist()]
            parts = {**parts, "overlong": torch.tensor(found)}
            reward = reward - parts["overlong"]
        return Rewards(score, reward, parts, shown)

    def learned_from(
        self, rewards: Rewards, group: Int[Tensor, " B"], *, grouped: bool
    ) -> tuple[Float[Tensor, " B"], dict[str, float]]:
        """(what advantages are estimated from, each part's share of them by name) of a batch of all processes.

        That is the reward itself, but for a normalised_sum: its sources are normalised apart, less the penalties.
        `grouped`: advantages are those within a group. One source without penalties has no shares.
        """
        values = self._shaped(rewards.sources or {next(iter(self.sources)): rewards.score})
        penalty = rewards.reward - self._combined(values)
        parts = {name: self.weights[name] * value for name, value in values.items()}
        reward, group = rewards.reward, group.cpu()
        if self.combine == "normalised_sum":
            parts = apart(values, self.weights, group, self.moments)
            reward = torch.stack(list(parts.values())).sum(0) + penalty
        if self.combine in ("min", "uncertainty"):
            return reward, setting_shares(values, self.weights, self.combine, aversion=self.aversion)
        if rewards.parts:
            scale = sum(self.weights.values()) if self.combine == "mean" else 1.0
            parts = {**parts, "penalty": penalty * scale}
        return reward, additive_shares(parts, group, grouped=grouped) if len(parts) > 1 else {}

    def _ngrams(self, texts: Texts) -> tuple[Tensor, dict[str, Tensor]]:
        """(the penalty, its parts by name)."""
        sequences: list[Any] = texts.tokens if self.penalty_level == "token" else [r.split() for r in texts.responses]
        parts = {n: torch.tensor([ngram_penalty(s, n) for s in sequences]) for n in self.penalty_n}
        named = {f"ngram_{n}" if len(parts) > 1 else "ngram": part for n, part in parts.items()}
        return torch.stack(list(parts.values())).mean(0), named


def _numbers(given: Any) -> list[float]:
    """Of a sequence, an array or a tensor of one dimension. A dict would be read by its keys, a text digit by digit and
    a set in any order. Raises TypeError or ValueError."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"a {type(given).__name__} is no list")
    return [float(value) for value in given]


def python_score(dotted: str) -> Score:
    """`module:function` with function(prompts, responses) -> list of floats."""
    function = function_named(dotted, "reward.fn", arguments=2)

    def score(texts: Texts) -> Tensor:
        try:
            given = function([*texts.prompts], [*texts.responses])
        except SystemExit as error:
            raise RunFailed(
                f"reward.fn={dotted} called sys.exit({error.code}); to stop a run, raise an error"
            ) from error
        try:
            values = _numbers(given)
        except (TypeError, ValueError) as error:
            shown = repr(given)[:80]
            raise RunFailed(
                f"reward.fn={dotted} must give one number a response; it gave {shown} ({error}; wanted is a list, an "
                "array or a tensor)"
            ) from error
        if len(values) != len(texts.responses):
            raise RunFailed(f"reward.fn={dotted} gave {len(values)} scores for {len(texts.responses)} responses")
        return torch.tensor(values)

    return score
