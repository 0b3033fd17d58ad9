"""Rollouts without their padding: one row of N real tokens goes through the model, and only attention sees rollouts,
as [B, T], or on a GPU one after the other.

A prompt that several rollouts of a micro-batch share is in it once, and a response's last token, from which nothing is
predicted, not at all. The layout follows from lengths and groups, which the host knows: no GPU is asked for it. Left
out on purpose: block-sparse attention; T is short, and attention a few percent of the work.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf_cli.engine import varlen
from rlhf_cli.engine.decoder import Decoder
from rlhf_cli.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Sequences:
    """The rollouts one after the other, L tokens, each with its prompt."""

    starts: Int[Tensor, " S"]
    """int32: where each begins, and the end: S = B + 1."""
    longest: int
    token: Int[Tensor, " L"] | None
    """Which packed token stands there; None: the packed tokens are just these."""
    own: Int[Tensor, " N"] | None
    """Where each packed token is."""


@dataclass(frozen=True, slots=True)
class Packing:
    ids: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    place: Int[Tensor, "B T"]
    """Which packed token stands at each position of each rollout; anything after its end."""
    back: Int[Tensor, " N"]
    """Where in [B, T], flat, each packed token is."""
    empty: Int[Tensor, " places"]
    """Where in [B, T] no token is at its own place: padding, and prompts that an earlier rollout has."""
    shares: bool
    """Some tokens stand at several places."""
    whole: bool
    """There is no padding and nothing shared: `place` and `back` change nothing."""
    predictors: Int[Tensor, " K"]
    """The packed tokens from which response tokens are predicted, and a few more: what the last layer must compute."""
    predictor: Int[Tensor, " M"]
    """Which of them predicts each response token, in the order of `responses[mask]`."""
    direct: bool
    """The first predicts the first, and so on: `predictor` changes nothing."""
    sequences: Sequences | None = None
    """On a GPU."""

    def spread(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "places C"]:
        """What each place of each rollout reads; anything where there is no token."""
        return x if self.whole else x.index_select(0, self.place.flatten())

    def spread_gradient(self, d: Float[Tensor, "places C"]) -> Float[Tensor, "N C"]:
        """`d` is 0 at padding, as attention's gradient is."""
        if self.whole:
            return d
        if not self.shares:
            return d.index_select(0, self.back)
        return d.new_zeros(len(self.back), d.shape[1]).index_add_(0, self.place.flatten(), d)

    def gathered(self, x: Float[Tensor, "places C"]) -> Float[Tensor, "N C"]:
        """What is at the packed tokens' own places."""
        return x if self.whole else x.index_select(0, self.back)

    def gathered_gradient(self, d: Float[Tensor, "N C"]) -> Float[Tensor, "places C"]:
        if self.whole:
            return d
        spread = d.new_empty(self.place.numel(), d.shape[1])
        return spread.index_copy_(0, self.back, d).index_fill_(0, self.empty, 0)


_last: list[tuple[Rollout, Callable[[int], int], Packing]] = []
"""Reference, policy and critic read the same micro-batch one after the other."""


def pack(rollout: Rollout, size: Callable[[int], int] = int) -> Packing:
    """Lay a rollout's tokens in one row; rollouts of one group share the tokens of their prompt.

    `size`: to how many of them that number is to be filled up, where there is padding to do it with.
    """
    if not _last or _last[0][0] is not rollout or _last[0][1] is not size:
        with torch.inference_mode(False):  # what is made inside could not be used for learning
            _last[:] = [(rollout, size, _packed(rollout, size))]
    return _last[0][2]


def _packed(rollout: Rollout, size: Callable[[int], int]) -> Packing:
    """On the host. Not by x[index]: torch spreads that over all cores, and waking 16 of them took an H100's host 5 ms
    each time."""
    rows = torch.arange(len(rollout))
    width, before = rollout.prompts.shape[1], rollout.prompt_lengths[:, None]
    end = before + rollout.lengths[:, None] - 1
    at = torch.arange(int(end.max()))
    in_prompt, in_response = at < before, (at >= before) & (at < end)
    owner = _owner(rollout, rows)
    fresh = (in_prompt & (owner == rows)[:, None]) | in_response
    if size is not int:  # tokens after the end, which nothing sees
        count, after = int(fresh.sum()), at >= end
        in_response |= after & (after.flatten().cumsum(0) <= size(count) - count).view(after.shape)
        fresh |= in_response
    number = (fresh.flatten().cumsum(0) - 1).view(fresh.shape)
    place = torch.where(in_prompt, number.index_select(0, owner), number).masked_fill(~(in_prompt | in_response), 0)
    source = torch.where(in_prompt, width - before + at, width + (at - before).clamp(0, rollout.responses.shape[1] - 1))
    source += rows[:, None] * (width + rollout.responses.shape[1])
    back, empty = (x.flatten().nonzero().squeeze(1) for x in (fresh, ~fresh))
    last = (before - 1 + torch.arange(rollout.responses.shape[1])).clamp(max=len(at) - 1)
    predictors, predictor = place.gather(1, last).masked_select(rollout.host_mask).unique(return_inverse=True)
    direct = len(predictors) == len(predictor)
    if size is not int:
        others = torch.ones(int(fresh.sum()), dtype=torch.bool).index_fill_(0, predictors, False)
        more = others.nonzero().squeeze(1)[: size(len(predictors)) - len(predictors)]
        direct &= not len(more)
        predictors, order = torch.cat([predictors, more]).sort()
        predictor = order.argsort()[predictor]

    def there(x: Tensor) -> Tensor:
        return x.to(rollout.device, non_blocking=True)

    return Packing(
        ids=rollout.ids.flatten()[there(source.flatten()[back])],
        positions=there(back % len(at)),
        place=there(place),
        back=there(back),
        empty=there(empty),
        shares=bool((in_prompt & ~fresh).any()),
        whole=not len(empty),
        predictors=there(predictors),
        predictor=there(predictor),
        direct=direct,
        sequences=_sequences(in_prompt | in_response, place, fresh, there) if rollout.device.type == "cuda" else None,
    )


def _sequences(real: Tensor, place: Tensor, fresh: Tensor, there: Callable[[Tensor], Tensor]) -> Sequences:
    """Of the places [B, T] of real tokens, of which some are `fresh`: not in an earlier rollout."""
    lengths, shares = real.sum(1), not torch.equal(real, fresh)
    return Sequences(
        starts=there(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()),
        longest=int(lengths.max()),
        token=there(place.masked_select(real)) if shares else None,
        own=there((real.flatten().cumsum(0) - 1).masked_select(fresh.flatten())) if shares else None,
    )


def _owner(rollout: Rollout, rows: Tensor) -> Tensor:
    """For each rollout the first one of its group."""
    _, group = rollout.group.unique(return_inverse=True)
    return torch.full_like(rows, len(rows)).scatter_reduce(0, group, rows, "amin")[group]


def attend(
    heads: Float[Tensor, "N all D"],
    packing: Packing,
    decoder: Decoder,
    dtype: torch.dtype,
    wanted: Int[Tensor, " K"] | None,
    *,
    padded: bool = False,
) -> Float[Tensor, "K attended"]:
    """Causal attention within each rollout, of `layer.Attend`'s tensor; `wanted`: for these packed tokens; `padded`:
    by operations that have a second derivative."""
    rows, width = packing.place.shape
    heads, parts = heads.to(dtype), [decoder.heads, decoder.kv_heads, decoder.kv_heads]
    kind = (decoder.heads, decoder.kv_heads, decoder.head_size, dtype, heads.device)
    if packing.sequences is not None and not padded and varlen.takes(*kind):
        return _apart(heads, parts, packing.sequences, decoder.scale, wanted)
    # causal is enough: padding comes after what is real
    q, k, v = (
        packing.spread(p.flatten(1)).view(rows, width, p.shape[1], -1).transpose(1, 2) for p in heads.split(parts, 1)
    )
    grouped = decoder.heads != decoder.kv_heads
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=decoder.scale, enable_gqa=grouped)
    found = packing.gathered(out.transpose(1, 2).reshape(rows * width, -1))
    return found if wanted is None else found.index_select(0, wanted)


def _apart(
    heads: Float[Tensor, "N all D"],
    parts: list[int],
    sequences: Sequences,
    scale: float,
    wanted: Int[Tensor, " K"] | None,
) -> Float[Tensor, "K attended"]:
    """The same without [B, T]."""
    token, own = sequences.token, sequences.own
    q, k, v = (heads if token is None else heads.index_select(0, token)).split(parts, 1)
    out = varlen.attention(q, k, v, sequences.starts, sequences.longest, scale).flatten(1)
    if own is None:
        return out if wanted is None else out.index_select(0, wanted)
    return out.index_select(0, own if wanted is None else own.index_select(0, wanted))
