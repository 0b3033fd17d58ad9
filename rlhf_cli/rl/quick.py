"""Qwen2 with the layers of `layers`, for the CPU: fewer passes over memory, and fewer pages touched first.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory. In `layers`, temporaries that do not outlive an operation are in scratch memory, and what can be
computed again in one pass is not kept. Under autocast only the products are in its dtype. On a GPU, and where a
gradient is differentiated again (`differentiable_twice`), the layers are transformers' own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from rlhf_cli.internals.transformers_private import cache_argument, qwen2_classes
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
    Layer, Norm = qwen2_classes()
    cache_name = cache_argument(Layer)

    class QuickLayer(Layer):  # type: ignore[misc]
        def forward(
            self,
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            position_embeddings: tuple[Tensor, Tensor] | None = None,
            use_cache: bool | None = None,
            packing: Packing | None = None,
            cache: Any = None,
            past_key_values: Any = None,
        ) -> Tensor:
            stored = past_key_values if cache is None else cache
            if _slow(hidden_states) or (packing is None and _learns_under_autocast()):
                plain: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
                plain |= {"position_embeddings": position_embeddings, "use_cache": use_cache, cache_name: stored}
                return super().forward(hidden_states, **plain, **({"packing": packing} if packing else {}))
            assert position_embeddings is not None  # Qwen2's trunk makes them once for all layers
            if packing is not None:
                attend = partial(_packed_attention, packing=packing)
            else:
                attend = partial(_padded_attention, attention_mask=attention_mask, stored=stored)
            return layer_forward(self, hidden_states, position_embeddings, attend)

    class QuickNorm(Norm):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            if _slow(hidden_states):
                return super().forward(hidden_states)
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    return QuickLayer, QuickNorm


def _slow(x: Tensor) -> bool:
    return x.device.type != "cpu" or _twice[0]


def _learns_under_autocast() -> bool:
    """With transformers' layout that is rare, and left to them."""
    return torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def layer_forward(
    layer: Any,
    x: Float[Tensor, "B T H"],
    position_embeddings: tuple[Tensor, Tensor],
    attend: Callable[..., Tensor],
) -> Float[Tensor, "B T H"] | Float[Tensor, "B K H"]:
    """What Qwen2DecoderLayer.forward computes; the last layer of a packed pass only where something is predicted."""
    dtype, lower = products_dtype(x), torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):  # what is cast, and when, is decided here
        stream = x.float() if lower else x
        rows = attend(layer, stream, position_embeddings, dtype=dtype)
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
    *,
    attention_mask: Tensor | None,
    stored: Any,
    dtype: torch.dtype,
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
    if stored is not None:
        key, value = stored.update(key, value, inner.layer_idx)
    out, _none = attention(inner, query, key, value, attention_mask, scaling=inner.scaling)
    rows = x.flatten(0, -2)
    attended = cast(out.reshape(len(rows), -1), dtype, "attended")
    return added(rows, attended, lowered(inner.o_proj.weight, dtype).T)
