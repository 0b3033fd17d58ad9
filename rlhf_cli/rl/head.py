"""Log-probs and entropies of given tokens straight from hidden states: [N, V] is never held whole in many copies.

log softmax(s Wᵀ / T)[y] costs one matrix product and three passes over the logits. What its gradient needs is
exp(logits − max) and two numbers a row, so that is kept (one buffer where it fits, else recomputed chunk by chunk),
instead of the logits, their softmax, its logarithm and their products.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_cli.rl.gradients import gradient_of, rest

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}
"""Tokens × vocabulary worked on at once."""
CACHED_ELEMENTS, ENOUGH_ROWS = 2**18, 128
"""On the CPU: a megabyte of logits, so that the passes over them stay in the cache; but rows enough for a product."""
KEEP_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Tokens × vocabulary kept for the backward pass; above that they are computed a second time."""


def token_logprobs(
    states: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log softmax(states @ weight.T / temperature)[labels] and the entropy, in float32 (float64 stays float64)."""
    if torch.is_autocast_enabled(states.device.type):
        dtype = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    logprobs, entropies = _TokenLogprobs.apply(states, weight, labels, temperature)
    return logprobs, entropies


class _TokenLogprobs(torch.autograd.Function):
    """With x = s Wᵀ / T, e = exp(x − max x), Z = Σ e, p = e / Z and H the entropy:

    d log p_y / dx = onehot(y) − p,   dH / dx = −p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        count, vocabulary = len(states), weight.shape[0]
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        keeps = ctx.needs_input_grad[0] and count * vocabulary <= _limit(KEEP_ELEMENTS, states)
        kept = states.new_empty((count, vocabulary), dtype=wide) if keeps else None
        logprobs, entropies, total = (states.new_empty(count, dtype=wide) for _ in range(3))
        for rows in _chunks(count, vocabulary, states):
            e, x, z = _exponentials(states[rows], weight, temperature, wide, out=None if kept is None else kept[rows])
            total[rows] = z
            logprobs[rows] = x.gather(1, labels[rows, None]).squeeze(1) - z.log()
            entropies[rows] = z.log() - x.mul_(e).sum(1) / z
        ctx.save_for_backward(states, labels, total, entropies, kept)
        ctx.weight, ctx.temperature = weight, temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        (states, labels, total, entropies, kept), weight = ctx.saved_tensors, ctx.weight
        d_states = torch.zeros_like(states)
        d_weight = gradient_of(weight) if ctx.needs_input_grad[1] else None
        wide = total.dtype
        for rows in _chunks(len(states), weight.shape[0], states):
            e = kept[rows] if kept is not None else _exponentials(states[rows], weight, ctx.temperature, wide)[0]
            z = total[rows, None]
            if d_logprobs is None:
                d = torch.zeros_like(e)
            else:
                d = e * (-d_logprobs[rows, None] / z)
                d.scatter_add_(1, labels[rows, None], d_logprobs[rows, None])
            if d_entropies is not None:
                p = e / z
                d += d_entropies[rows, None] * (torch.special.entr(p) - p * entropies[rows, None])
            d = d.div_(ctx.temperature).to(states.dtype) if ctx.temperature != 1 else d.to(states.dtype)
            torch.mm(d, weight, out=d_states[rows])
            if d_weight is not None:
                d_weight.addmm_(d.T, states[rows])
        return d_states, None if d_weight is None else rest(weight, d_weight), None, None


def _exponentials(
    states: Tensor, weight: Tensor, temperature: float, wide: torch.dtype, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(exp(x − max x), x − max x, Σ exp(x − max x)) of the logits x, the first into `out`."""
    x = torch.mm(states, weight.T).to(wide)
    if temperature != 1:
        x /= temperature
    x -= x.amax(1, keepdim=True)
    e = torch.exp(x, out=out)
    return e, x, e.sum(1)


def _chunks(count: int, vocabulary: int, like: Tensor) -> list[slice]:
    """Equal pieces of at most the device's limit, on the CPU of what its cache holds."""
    size = max(1, _limit(CHUNK_ELEMENTS, like) // vocabulary)
    if like.device.type == "cpu":
        size = min(size, max(CACHED_ELEMENTS // vocabulary, ENOUGH_ROWS))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _limit(limits: dict[str, int], like: Tensor) -> int:
    return limits.get(like.device.type, limits["cpu"])
