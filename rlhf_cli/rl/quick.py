"""Qwen2 with the layers of `layers`, for the CPU: fewer passes over memory, and fewer pages touched first.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory. In `layers`, temporaries that do not outlive an operation are in scratch memory, and what can be
computed again in one pass is not kept. On a GPU, under autocast, and where a gradient is differentiated again
(`differentiable_twice`), the layers are transformers' own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from rlhf_cli.rl.layers import feed_forward, rms_norm, rotate, self_attention
from rlhf_cli.rl.packing import Packing, attention

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
            if _slow(hidden_states):
                return super().forward(hidden_states, **options)
            return layer_forward(self, hidden_states, **options)

    class QuickNorm(Qwen2RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if _slow(hidden_states):
                return super().forward(hidden_states)
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    return QuickLayer, QuickNorm


def _slow(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or _twice[0]


def layer_forward(
    layer: Any,
    x: Float[Tensor, "B T H"],
    *,
    position_embeddings: tuple[Tensor, Tensor],
    packing: Packing | None = None,
    **more: Any,
) -> Float[Tensor, "B T H"] | Float[Tensor, "B K H"]:
    """What Qwen2DecoderLayer.forward computes; the last layer of a packed pass only where something is predicted."""
    if packing is None:
        rows = _padded_attention(layer, x, position_embeddings, **more)
    else:
        inner, norm = layer.self_attn, layer.input_layernorm
        query, key, value = ((p.weight, p.bias) for p in (inner.q_proj, inner.k_proj, inner.v_proj))
        cos, sin = (table[0, :, None] for table in position_embeddings)
        rows = self_attention(
            x.squeeze(0),
            norm.weight,
            (query, key, value),
            inner.o_proj.weight,
            cos=cos,
            sin=sin,
            packing=packing,
            wanted=packing.predictors if layer.is_last else None,
            epsilon=norm.variance_epsilon,
        )
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    weights = (norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    return feed_forward(rows, *weights, epsilon=norm.variance_epsilon).view(*x.shape[:-2], -1, x.shape[-1])


def _padded_attention(
    layer: Any,
    x: Float[Tensor, "B T H"],
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **_: Any,
) -> Float[Tensor, "N H"]:
    inner, norm = layer.self_attn, layer.input_layernorm
    cos, sin = (table[:, :, None] for table in position_embeddings)
    h = rms_norm(x, norm.weight, norm.variance_epsilon)
    shape = (*h.shape[:-1], -1, inner.head_dim)
    query = rotate(linear(h, inner.q_proj.weight, inner.q_proj.bias).view(shape), cos, sin).transpose(1, 2)
    key = rotate(linear(h, inner.k_proj.weight, inner.k_proj.bias).view(shape), cos, sin).transpose(1, 2)
    value = linear(h, inner.v_proj.weight, inner.v_proj.bias).view(shape).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, inner.layer_idx)
    out, _none = attention(inner, query, key, value, attention_mask, scaling=inner.scaling)
    rows = x.flatten(0, -2)
    return torch.addmm(rows, out.reshape(len(rows), -1), inner.o_proj.weight.T)
