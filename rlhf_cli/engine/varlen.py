"""Attention within each of several sequences that stand one after the other, on a GPU, without padding.

The kernel is torch's (`torch.nn.attention.varlen`, FlashAttention): half precision only. It is tried once on a few
tokens, and taken where it gives what the padded attention gives, forward and backward.
"""

from functools import cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

TRIED = (5, 1, 3)
"""Lengths of the sequences that it is tried on."""
TOLERANCE = 0.03
"""Of the largest number; half precision has 8 bits."""
ASKS = "enable_gqa" in signature(varlen_attn).parameters
"""torch 2.11 takes fewer heads of keys than of queries without being told."""


def attention(
    query: Float[Tensor, "L heads D"],
    key: Float[Tensor, "L kv_heads D"],
    value: Float[Tensor, "L kv_heads D"],
    starts: Int[Tensor, " S"],
    longest: int,
    scale: float,
) -> Float[Tensor, "L heads D"]:
    """Causal attention within each sequence. `starts`: int32, where each begins, and the end; `longest`: tokens of
    the longest."""
    told: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if ASKS else {}
    found = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), **told
    )  # fmt: skip
    assert isinstance(found, Tensor)  # a pair only where it is asked for
    return found


@cache
def takes(heads: int, kv_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel is here, takes such heads, and gives the right numbers for them. The first time it waits for
    the GPU."""
    if device.type != "cuda" or dtype.itemsize != 2 or not torch.backends.cuda.is_flash_attention_available():
        return False
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(sum(TRIED), n, size, generator=generator) for n in (heads, kv_heads, kv_heads, heads)]
    starts = torch.tensor([0, *torch.tensor(TRIED).cumsum(0).tolist()], dtype=torch.int32).to(device)
    try:
        found = _differentiated([x.to(device, dtype) for x in parts], starts)
    except (RuntimeError, NotImplementedError, TypeError):  # heads, a GPU or a call that the kernel does not know
        return False
    expected = _differentiated([x.to(dtype).float() for x in parts], None)
    off = [(x.float().cpu() - y).abs().max() / y.abs().max() for x, y in zip(found, expected, strict=True)]
    return bool(torch.stack(off).max() <= TOLERANCE)


def _differentiated(parts: list[Tensor], starts: Tensor | None) -> list[Tensor]:
    """[output, gradients of query, key and value] for the fourth part as the output's gradient; by padded attention
    where `starts` is None."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(parts[0].device.type, enabled=False):
        q, k, v = (x.clone().requires_grad_() for x in parts[:3])
        scale = q.shape[-1] ** -0.5
        if starts is not None:
            out = attention(q, k, v, starts, max(TRIED), scale)
        else:
            apart = zip(q.split(TRIED), k.split(TRIED), v.split(TRIED), strict=True)
            out = torch.cat([_one(*each, scale) for each in apart])
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), parts[3])]


def _one(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)
