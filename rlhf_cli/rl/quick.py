"""Qwen2's layers with hand-written gradients, for the CPU: fewer passes over memory, and fewer pages touched first.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory, and each temporary of a megabyte is mapped and zeroed afresh by the system. Here temporaries that do
not outlive an operation are in scratch memory, and what can be computed again in one pass is not kept. On a GPU, under
autocast, and where a gradient is differentiated again (`differentiable_twice`), the layers are transformers' own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rlhf_cli.rl.gradients import gradient_of, rest
from rlhf_cli.rl.packing import attention
from rlhf_cli.rl.scratch import scratch

aten = torch.ops.aten
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
            layer.__class__ = quick_layer
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
    rows = x.flatten(0, -2)
    rows = torch.addmm(rows, out.reshape(len(rows), -1), inner.o_proj.weight.T)
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    weights = (norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    return feed_forward(rows, *weights, epsilon=norm.variance_epsilon).view(x.shape)


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
        ctx.save_for_backward(x, scale)
        ctx.weight = weight
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale), weight = ctx.saved_tensors, ctx.weight
        n = torch.mul(x, scale, out=scratch("n", x))
        d_weight = gradient_of(weight)
        return _norm_backward(d.clone(), n, weight, scale, d_weight), rest(weight, d_weight), None


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


def feed_forward(
    x: Float[Tensor, "N H"],
    norm: Float[Tensor, " H"],
    gate: Float[Tensor, "I H"],
    up: Float[Tensor, "I H"],
    down: Float[Tensor, "H I"],
    *,
    epsilon: float,
) -> Float[Tensor, "N H"]:
    """x + (silu(n gateᵀ) · n upᵀ) downᵀ of n = rms_norm(x), the second half of a layer."""
    if torch.is_grad_enabled():
        return cast(Tensor, _FeedForward.apply(x, norm, gate, up, down, epsilon))
    n = torch.mul(x, _norm_scale(x, epsilon), out=scratch("n", x)).mul_(norm)
    g, u = (torch.mm(n, w.T, out=scratch(name, x, (len(x), len(w)))) for w, name in ((gate, "g"), (up, "u")))
    return torch.addmm(x, aten.silu.out(g, out=g).mul_(u), down.T)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, epsilon: float) -> Tensor:
        scale = _norm_scale(x, epsilon)
        n = torch.mul(x, scale, out=scratch("n", x)).mul_(norm)
        g, u = n @ gate.T, n @ up.T
        ctx.save_for_backward(x, scale, g, u)
        ctx.weights = (norm, gate, up, down)
        return torch.addmm(x, aten.silu.out(g, out=scratch("h", g)).mul_(u), down.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, g, u = ctx.saved_tensors
        norm, gate, up, down = ctx.weights
        d_norm, d_gate, d_up, d_down = d_weights = [gradient_of(w) for w in ctx.weights]
        n = torch.mul(x, scale, out=scratch("n", x))
        weighted = torch.mul(n, norm, out=scratch("weighted", x))
        s = aten.silu.out(g, out=scratch("s", g))
        h = torch.mul(s, u, out=scratch("h", g))
        d_down.addmm_(d.T, h)
        d_h = torch.mm(d, down, out=h)
        d_u = s.mul_(d_h)
        d_up.addmm_(d_u.T, weighted)
        d_g = aten.silu_backward.grad_input(d_h.mul_(u), g, grad_input=d_h)
        d_gate.addmm_(d_g.T, weighted)
        d_n = torch.mm(d_u, up, out=weighted).addmm_(d_g, gate)
        d_x = d + _norm_backward(d_n, n, norm, scale, d_norm)
        return d_x, *map(rest, ctx.weights, d_weights), None


def _norm_backward(d: Tensor, n: Tensor, weight: Tensor, scale: Tensor, d_weight: Tensor) -> Tensor:
    """The gradient of rms_norm in x, from n = x · scale: dn = d · w and dx = scale (dn − n mean(dn · n)). In place of
    d; the gradient of the weight is added to `d_weight`."""
    product = torch.mul(d, n, out=scratch("product", d))
    d_weight.add_(product.flatten(0, -2).sum(0))
    mean = product.mul_(weight).mean(-1, keepdim=True)
    return d.mul_(weight).addcmul_(n, mean, value=-1).mul_(scale)
