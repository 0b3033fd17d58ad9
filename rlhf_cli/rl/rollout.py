"""The batch is a record. Dimensions: B rollouts, P prompt, R response, T = P + R, V vocabulary.

What says how a batch is laid out (lengths, groups, which rows ended) stays in the host's memory; tokens and numbers are
on the device. So rows are ordered, cut into micro-batches and packed without waiting for a GPU.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Same = TypeVar("Same", bound="Record")


@dataclass(frozen=True, slots=True)
class Record:
    """A record of tensors that share their first dimension."""

    HOST: ClassVar[tuple[str, ...]] = ()
    """Fields that stay in the host's memory."""

    def select(self: Same, indices: Tensor | slice) -> Same:
        """The rows `indices` of every field; a tensor of indices is the host's."""
        return replace(self, **{name: chosen_rows(x, indices) for name, x in self._tensors().items()})

    def to(self: Same, device: torch.device) -> Same:
        """The same with what is not the host's on this device."""
        return replace(self, **{name: x.to(device) for name, x in self._tensors().items() if name not in self.HOST})

    def _tensors(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in named.items() if isinstance(x, Tensor)}


def chosen_rows(x: Tensor, rows: Tensor | slice) -> Tensor:
    """x[rows], wherever x is. Indices on their way to a GPU are waited for by nobody."""
    return x[rows if isinstance(rows, slice) else rows.to(x.device, non_blocking=True)]


@dataclass(frozen=True, slots=True)
class Prompts(Record):
    HOST = ("lengths", "index", "group")

    ids: Int[Tensor, "B P"]
    """Left-padded."""
    lengths: Int[Tensor, " B"]
    index: Int[Tensor, " B"]
    """Which rollout of the step: what its random numbers hang on."""
    group: Int[Tensor, " B"]
    """Rollouts of one prompt share it."""

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, slots=True)
class Rollout(Record):
    HOST = ("prompt_lengths", "lengths", "ended", "group")

    prompts: Int[Tensor, "B P"]
    """Left-padded."""
    prompt_lengths: Int[Tensor, " B"]
    responses: Int[Tensor, "B R"]
    """Right-padded; the EOS token belongs to the response."""
    lengths: Int[Tensor, " B"]
    """Response lengths."""
    ended: Bool[Tensor, " B"]
    """Whether the response ended with an EOS token."""
    logprobs: Float[Tensor, "B R"]
    """Of the sampled tokens, as sampled; 0 outside the response."""
    group: Int[Tensor, " B"]

    def __len__(self) -> int:
        return self.responses.shape[0]

    @property
    def device(self) -> torch.device:
        return self.responses.device

    @property
    def mask(self) -> Bool[Tensor, "B R"]:
        """True at response tokens."""
        positions = torch.arange(self.responses.shape[1], device=self.device)
        return positions < self.lengths[:, None].to(self.device, non_blocking=True)

    @property
    def host_mask(self) -> Bool[Tensor, "B R"]:
        """The mask in the host's memory."""
        return torch.arange(self.responses.shape[1]) < self.lengths[:, None]

    @property
    def places(self) -> Int[Tensor, " M"]:
        """Where in [B, R], flat, the response tokens are: `x.flatten()[places]` is `x[mask]`, and waits for nothing."""
        return self.host_mask.flatten().nonzero().squeeze(1).to(self.device, non_blocking=True)

    @property
    def ids(self) -> Int[Tensor, "B T"]:
        return torch.cat([self.prompts, self.responses], 1)

    @property
    def attention(self) -> Bool[Tensor, "B T"]:
        """True at real tokens: from the lengths, never from ids (pad may equal EOS)."""
        width = self.prompts.shape[1]
        before = self.prompt_lengths[:, None].to(self.device, non_blocking=True)
        return torch.cat([torch.arange(width, device=self.device) >= width - before, self.mask], 1)

    def cheapest_order(self) -> Int[Tensor, " B"]:
        """The order of rows that costs least to read: rows of one prompt together, whose tokens they share in a
        micro-batch, and groups of like length."""
        groups, number = self.group.unique(return_inverse=True)
        longest = torch.zeros_like(groups).scatter_reduce(0, number, self.lengths, "amax")
        return (longest[number] * len(groups) + number).argsort(stable=True)

    def pieces(self, rows: int) -> list[slice]:
        """Consecutive rows that have no more positions, padding included, than `rows` of the widest."""
        lengths = list(zip(self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True))
        limit = rows * (max(p for p, _ in lengths) + max(r for _, r in lengths))
        found, start, wide, long = [], 0, 0, 0
        for at, (prompt, response) in enumerate(lengths):
            wide, long = max(wide, prompt), max(long, response)
            if (at + 1 - start) * (wide + long) > limit:
                found.append(slice(start, at))
                start, wide, long = at, prompt, response
        return [*found, slice(start, len(lengths))]

    def trimmed(self) -> "Rollout":
        """The same rollouts without columns that are padding in every row."""
        width, longest = int(self.prompt_lengths.max()), int(self.lengths.max())
        return replace(
            self,
            prompts=self.prompts[:, self.prompts.shape[1] - width :],
            responses=self.responses[:, :longest],
            logprobs=self.logprobs[:, :longest],
        )


def concatenate(rollouts: list[Rollout], pad_id: int) -> Rollout:
    """All rows, prompts padded on the left and responses on the right to the widest."""
    width = max(r.prompts.shape[1] for r in rollouts)
    longest = max(r.responses.shape[1] for r in rollouts)

    def left(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (width - x.shape[1], 0), value=pad_id)

    def right(x: Tensor, value: int | float) -> Tensor:
        return torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=value)

    return Rollout(
        prompts=torch.cat([left(r.prompts) for r in rollouts]),
        prompt_lengths=torch.cat([r.prompt_lengths for r in rollouts]),
        responses=torch.cat([right(r.responses, pad_id) for r in rollouts]),
        lengths=torch.cat([r.lengths for r in rollouts]),
        ended=torch.cat([r.ended for r in rollouts]),
        logprobs=torch.cat([right(r.logprobs, 0.0) for r in rollouts]),
        group=torch.cat([r.group for r in rollouts]),
    )


@dataclass(frozen=True, slots=True)
class Experience(Record):
    """What the update learns from: the rollout and everything that was estimated on it."""

    rollout: Rollout
    old_logprobs: Float[Tensor, "B R"]
    ref_logprobs: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"] | None = None
    """None without a critic."""
    advantages: Float[Tensor, "B R"] | None = None
    returns: Float[Tensor, "B R"] | None = None
    read_logprobs: Float[Tensor, "B R"] | None = None
    """Of the policy that sampled, by a forward pass of training; None where it was not read again."""
    entropies: Float[Tensor, "B R"] | None = None
    """Of the same pass."""
    full_kl: Float[Tensor, "B R"] | None = None
    """The exact KL to the reference, where the algorithm takes it off the reward."""
    live_values: Float[Tensor, "B R"] | None = None
    """`values` with their autograd graph, where it was kept: good for one backward pass, before the critic learns."""

    def select(self, indices: Tensor | slice) -> "Experience":
        """The rows `indices`, without columns that are padding in all of them."""
        rollout = self.rollout.select(indices).trimmed()
        longest = rollout.responses.shape[1]
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rollout"}
        chosen: dict[str, Any] = {
            name: None if x is None else chosen_rows(x, indices)[:, :longest] for name, x in columns.items()
        }
        return replace(self, rollout=rollout, **chosen)
