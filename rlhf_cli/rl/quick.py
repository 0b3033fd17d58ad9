"""Qwen2 with the layers of `layers`, for the CPU: fewer passes over memory, and fewer pages touched first.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory. In `layers`, temporaries that do not outlive an operation are in scratch memory, and what can be
computed again in one pass is not kept. Under autocast only the products are in its dtype. On a GPU, and where a
gradient is differentiated again (`differentiable_twice`), the layers are transformers' own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from rlhf_cli.rl.layers import feed_forward, rms_norm, rotate, self_attention
from rlhf_cli.rl.packing import Packing, attention
from rlhf_cli.rl.products import added, cast, lowered, products_dtype

_twice = [False]


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Inside, every operation has a second derivative."""
    _twice[0] = True
    try:
        yield
    finally:
        _twice[0] = False


def quicken(model: Any) -> Any:
    """Make a loaded Qwen2's layers quick ones; other models stay as they are."""
    if model.config.model_type == "qwen2" and model.config.hidden_act == "silu":
        quick_layer, quick_norm = _quick_classes()
        for layer in model.base_model.layers:
            layer.__class__, layer.is_last = quick_layer, layer is model.base_model.layers[-1]
        model.base_model.norm.__class__ = quick_norm
    return model


@cache
def _quick_classes() -> tuple[type, type]:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

    class QuickLayer(Qwen2DecoderLayer):
        def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
            if _slow(hidden_states) or _learns_padded(**options):
                return super().forward(hidden_states, **options)
            return layer_forward(self, hidden_states, **options)

    class QuickNorm(Qwen2RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if _slow(hidden_states):
                return super().forward(hidden_states)
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    return QuickLayer, QuickNorm


def _slow(x: Tensor) -> bool:
    return x.device.type != "cpu" or _twice[0]


def _learns_padded(packing: Packing | None = None, **_: Any) -> bool:
    """Autocast and transformers' layout: rare, and left to them."""
    return packing is None and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def layer_forward(
    layer: Any,
    x: Float[Tensor, "B T H"],
    *,
    position_embeddings: tuple[Tensor, Tensor],
    packing: Packing | None = None,
    **more: Any,
) -> Float[Tensor, "B T H"] | Float[Tensor, "B K H"]:
    """What Qwen2DecoderLayer.forward computes; the last layer of a packed pass only where something is predicted."""
    dtype, lower = products_dtype(x), torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):  # what is cast, and when, is decided here
        stream = x.float() if lower else x
        attend = _padded_attention if packing is None else partial(_packed_attention, packing=packing)
        rows = attend(layer, stream, position_embeddings, dtype=dtype, **more)
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        weights = (norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        rows = feed_forward(rows, *weights, epsilon=norm.variance_epsilon, dtype=dtype)
    return rows.view(*x.shape[:-2], -1, x.shape[-1])


def _packed_attention(
    layer: Any,
    x: Float[Tensor, "1 N H"],
    position_embeddings: tuple[Tensor, Tensor],
    *,
    packing: Packing,
    dtype: torch.dtype,
    **_: Any,
) -> Float[Tensor, "N H"] | Float[Tensor, "K H"]:
    inner, norm = layer.self_attn, layer.input_layernorm
    query, key, value = ((p.weight, p.bias) for p in (inner.q_proj, inner.k_proj, inner.v_proj))
    cos, sin = (table[0, :, None].to(x.dtype) for table in position_embeddings)
    return self_attention(
        x.squeeze(0),
        norm.weight,
        (query, key, value),
        inner.o_proj.weight,
        cos=cos,
        sin=sin,
        packing=packing,
        wanted=packing.predictors if layer.is_last else None,
        epsilon=norm.variance_epsilon,
        dtype=dtype,
    )


def _padded_attention(
    layer: Any,
    x: Float[Tensor, "B T H"],
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    *,
    dtype: torch.dtype,
    **_: Any,
) -> Float[Tensor, "N H"]:
    inner, norm = layer.self_attn, layer.input_layernorm
    cos, sin = (table[:, :, None] for table in position_embeddings)
    h = rms_norm(x, norm.weight, norm.variance_epsilon)
    factor = cast(h, dtype, "normed")

    def heads(projection: Any) -> Tensor:
        weight, bias = (lowered(w, dtype) for w in (projection.weight, projection.bias))
        return linear(factor, weight, bias).to(x.dtype).view(*h.shape[:-1], -1, inner.head_dim)

    query, key = (rotate(heads(p), cos, sin).transpose(1, 2) for p in (inner.q_proj, inner.k_proj))
    value = heads(inner.v_proj).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, inner.layer_idx)
    out, _none = attention(inner, query, key, value, attention_mask, scaling=inner.scaling)
    rows = x.flatten(0, -2)
    attended = cast(out.reshape(len(rows), -1), dtype, "attended")
    return added(rows, attended, lowered(inner.o_proj.weight, dtype).T)
