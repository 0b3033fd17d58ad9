"""Qwen2's layers with hand-written gradients, for the CPU: fewer passes over memory, and fewer pages touched first.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory, and each temporary of a megabyte is mapped and zeroed afresh by the system. Here temporaries that do
not outlive an operation are in scratch memory, and what can be computed again in one pass is not kept. On a GPU, under
autocast, and where a gradient is differentiated again (`differentiable_twice`), the layers are transformers' own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rlhf_cli.rl.packing import attention

aten = torch.ops.aten
_scratch: dict[str, Tensor] = {}
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
        for layer in model.base_model.layers:
            layer.__class__ = _quick_layer()
    return model


@cache
def _quick_layer() -> type:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    class QuickLayer(Qwen2DecoderLayer):
        def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
            if hidden_states.device.type != "cpu" or torch.is_autocast_enabled("cpu") or _twice[0]:
                return super().forward(hidden_states, **options)
            return layer_forward(self, hidden_states, **options)

    return QuickLayer


def layer_forward(
    layer: Any,
    x: Float[Tensor, "B T H"],
    *,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    packing: Any = None,
    **_: Any,
) -> Float[Tensor, "B T H"]:
    """What Qwen2DecoderLayer.forward computes."""
    inner, norm = layer.self_attn, layer.input_layernorm
    cos, sin = (table[:, :, None] for table in position_embeddings)
    h = rms_norm(x, norm.weight, norm.variance_epsilon)
    shape = (*h.shape[:-1], -1, inner.head_dim)
    query = rotate(linear(h, inner.q_proj.weight, inner.q_proj.bias).view(shape), cos, sin).transpose(1, 2)
    key = rotate(linear(h, inner.k_proj.weight, inner.k_proj.bias).view(shape), cos, sin).transpose(1, 2)
    value = linear(h, inner.v_proj.weight, inner.v_proj.bias).view(shape).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, inner.layer_idx)
    out, _none = attention(inner, query, key, value, attention_mask, scaling=inner.scaling, packing=packing)
    x = x + linear(out.reshape(*h.shape[:-1], -1), inner.o_proj.weight)
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    h = rms_norm(x, norm.weight, norm.variance_epsilon)
    return x + gated(h, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)


def rms_norm(x: Float[Tensor, "*B H"], weight: Float[Tensor, " H"], epsilon: float) -> Float[Tensor, "*B H"]:
    """weight · x / √(mean x² + ε)."""
    if not torch.is_grad_enabled():
        return (x * _norm_scale(x, epsilon)).mul_(weight)
    return _RMSNorm.apply(x, weight, epsilon)


def _norm_scale(x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = _norm_scale(x, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x · scale: d n = d · w and dx = scale (dn − n mean(dn · n))."""
        x, weight, scale = ctx.saved_tensors
        n = torch.mul(x, scale, out=scratch("norm", x))
        product = torch.mul(d, n, out=scratch("product", x))
        d_weight = product.flatten(0, -2).sum(0)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        d_x = torch.mul(d, weight).addcmul_(n, mean, value=-1).mul_(scale)
        return d_x, d_weight, None


def rotate(
    x: Float[Tensor, "B T heads D"], cos: Float[Tensor, "#B T 1 D"], sin: Float[Tensor, "#B T 1 D"]
) -> Float[Tensor, "B T heads D"]:
    """The rotary embedding: pairs (i, i + D/2) turned by an angle."""
    if not torch.is_grad_enabled():
        return turned(x, cos, sin, 1)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return turned(d, cos, sin, -1), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """`rotate` by sign times the angles, unrecorded."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def gated(
    x: Float[Tensor, "*B H"], gate: Float[Tensor, "I H"], up: Float[Tensor, "I H"], down: Float[Tensor, "H I"]
) -> Float[Tensor, "*B H"]:
    """(silu(x gateᵀ) · x upᵀ) downᵀ."""
    rows, shape = x.flatten(0, -2), (x.shape[:-1].numel(), len(gate))
    if torch.is_grad_enabled():
        return _Gated.apply(rows, gate, up, down).view(x.shape)
    g, u = (torch.mm(rows, w.T, out=scratch(name, x, shape)) for w, name in ((gate, "gate"), (up, "up")))
    return torch.mm(aten.silu.out(g, out=g).mul_(u), down.T).view(x.shape)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        g, u = x @ gate.T, x @ up.T
        ctx.save_for_backward(x, g, u, gate, up, down)
        return torch.mm(aten.silu.out(g, out=scratch("silu", g)).mul_(u), down.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, ...]:
        x, g, u, gate, up, down = ctx.saved_tensors
        s = aten.silu.out(g, out=scratch("silu", g))
        h = torch.mul(s, u, out=scratch("hidden", g))
        d_down = d.T @ h
        d_h = torch.mm(d, down, out=h)
        d_u = s.mul_(d_h)
        d_up, d_x = d_u.T @ x, d_u @ up
        d_g = aten.silu_backward.grad_input(d_h.mul_(u), g, grad_input=d_h)
        return d_x.addmm_(d_g, gate), d_g.T @ x, d_up, d_down


def scratch(name: str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Uninitialised memory that is the caller's until it asks for the same name again."""
    shape = tuple(like.shape) if shape is None else shape
    count = torch.Size(shape).numel()
    held = _scratch.get(name)
    if held is None or held.numel() < count or held.dtype != like.dtype:
        _scratch[name] = held = torch.empty(count, dtype=like.dtype)
    return held[:count].view(shape)
