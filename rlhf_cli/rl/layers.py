"""The two halves of a Qwen2 layer with hand-written gradients, for the CPU.

Their products are in `dtype`; x, the weights and all gradients that are given or taken are in one precision.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_cli.internals.torch_private import cpu_attention, cpu_attention_backward, silu_backward_out, silu_out
from rlhf_cli.rl.gradients import gradient_of, rest
from rlhf_cli.rl.packing import Packing
from rlhf_cli.rl.products import add_product_, added, cast, lowered
from rlhf_cli.rl.scratch import scratch

Linear = tuple[Tensor, Tensor]


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


def self_attention(
    x: Float[Tensor, "N H"],
    norm: Float[Tensor, " H"],
    projections: tuple[Linear, Linear, Linear],
    out: Float[Tensor, "H all"],
    *,
    cos: Float[Tensor, "N 1 D"],
    sin: Float[Tensor, "N 1 D"],
    packing: Packing,
    wanted: Int[Tensor, " K"] | None,
    epsilon: float,
    dtype: torch.dtype,
) -> Float[Tensor, "N H"] | Float[Tensor, "K H"]:
    """x + attention(q, k, v) outᵀ with q, k and v linear in n = rms_norm(x), q and k rotated; the first half of a
    layer. Causal, within each rollout. `projections`: (weight, bias) of q, k and v; `wanted`: only for these tokens."""
    weights = (norm, out, *(w for pair in projections for w in pair))
    if torch.is_grad_enabled():
        return _SelfAttention.apply(x, cos, sin, packing, wanted, epsilon, dtype, *weights)
    n = _normed(x, norm, _norm_scale(x, epsilon), dtype)
    attended, _ = _attend(*_queries_keys_values(n, weights, cos, sin, packing))
    return added(_at(x, wanted), _attended_rows(attended, packing, wanted, dtype), lowered(out, dtype).T)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        packing: Packing,
        wanted: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        scale = _norm_scale(x, epsilon)
        n = _normed(x, weights[0], scale, dtype)
        parts = _queries_keys_values(n, weights, cos, sin, packing)
        attended, logsumexp = _attend(*parts)
        ctx.save_for_backward(x, scale, cos, sin, *parts, attended, logsumexp)
        ctx.packing, ctx.wanted, ctx.weights, ctx.dtype = packing, wanted, weights, dtype
        return added(_at(x, wanted), _attended_rows(attended, packing, wanted, dtype), lowered(weights[1], dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, cos, sin, *attention = ctx.saved_tensors
        packing, wanted, dtype, (norm, out, *weights) = ctx.packing, ctx.wanted, ctx.dtype, ctx.weights
        d_norm, d_out, *d_weights = gradients = [gradient_of(w) for w in ctx.weights]
        attended, factor = attention[3], cast(d, dtype, "d")
        add_product_(d_out, factor.T, _attended_rows(attended, packing, wanted, dtype))
        d_rows = torch.mm(factor, lowered(out, dtype), out=scratch("d_attended", factor, (len(d), out.shape[1])))
        d_rows = cast(d_rows, x.dtype, "d_attended")
        d_attended = packing.gathered_gradient(_at_gradient(d_rows, wanted, len(x)))
        d_parts = _attend_gradient(d_attended.view(attended.transpose(1, 2).shape).transpose(1, 2), *attention)
        n = torch.mul(x, scale, out=scratch("n", x))
        weighted = cast(torch.mul(n, norm, out=scratch("weighted", x)), dtype, "normed")
        d_n = scratch("d_n", x, dtype=dtype)
        for i, d_part in enumerate(d_parts):
            d_rows, weight = packing.spread_gradient(_rows(d_part)), lowered(weights[2 * i], dtype)
            if i < 2:
                d_rows = turned(d_rows.view(len(x), -1, cos.shape[-1]), cos, sin, -1).view(len(x), -1)
            d_weights[2 * i + 1].add_(d_rows.sum(0))
            d_rows = cast(d_rows, dtype, "d_projected")
            torch.mm(d_rows, weight, out=d_n) if i == 0 else d_n.addmm_(d_rows, weight)
            add_product_(d_weights[2 * i], d_rows.T, weighted)
        d_n = cast(d_n, x.dtype, "d_n")
        d_x = _at_gradient(d, wanted, len(x)) + _norm_backward(d_n, n, norm, scale, d_norm)
        return d_x, None, None, None, None, None, None, *map(rest, ctx.weights, gradients)


def _attended_rows(attended: Tensor, packing: Packing, wanted: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What attention gave at the packed tokens that are wanted, as a product's factor."""
    return cast(_at(packing.gathered(_rows(attended)), wanted), dtype, "attended")


def _normed(x: Tensor, norm: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor of products: x · scale · norm, in scratch memory."""
    return cast(torch.mul(x, scale, out=scratch("n", x)).mul_(norm), dtype, "normed")


def _queries_keys_values(
    n: Tensor, weights: tuple[Tensor, ...], cos: Tensor, sin: Tensor, packing: Packing
) -> list[Float[Tensor, "B heads T D"]]:
    """In the precision of the angles: attention, and its backward pass above all, is slow in bfloat16."""
    parts = []
    for i, (weight, bias) in enumerate(zip(weights[2::2], weights[3::2], strict=True)):
        # what is cast, rotated or spread is copied by that
        passing = i < 2 or not packing.whole or n.dtype != cos.dtype
        memory = scratch("projected", n, (len(n), len(weight))) if passing else n.new_empty(len(n), len(weight))
        rows = torch.addmm(lowered(bias, n.dtype), n, lowered(weight, n.dtype).T, out=memory)
        rows = cast(rows, cos.dtype, "wide") if i < 2 or not packing.whole else rows.to(cos.dtype)
        heads = rows.view(len(n), -1, cos.shape[-1])
        rows = (turned(heads, cos, sin, 1) if i < 2 else heads).view(len(n), -1)
        parts.append(packing.spread(rows).view(*packing.place.shape, *heads.shape[1:]).transpose(1, 2))
    return parts


def _at(x: Float[Tensor, "N C"], wanted: Int[Tensor, " K"] | None) -> Tensor:
    """The rows that are wanted."""
    return x if wanted is None else x.index_select(0, wanted)


def _at_gradient(d: Float[Tensor, "K C"], wanted: Int[Tensor, " K"] | None, count: int) -> Tensor:
    return d if wanted is None else d.new_zeros(count, d.shape[1]).index_copy_(0, wanted, d)


def _rows(x: Float[Tensor, "B heads T D"]) -> Float[Tensor, "places all"]:
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def _attend(
    query: Float[Tensor, "B heads T D"], key: Float[Tensor, "B kv_heads T D"], value: Float[Tensor, "B kv_heads T D"]
) -> tuple[Float[Tensor, "B heads T D"], Tensor]:
    """Causal attention, and what its gradient needs; a head of keys and values serves several of queries."""
    keys, values = _repeated(key, query), _repeated(value, query)
    attended, logsumexp = cpu_attention(query, keys, values, 0.0, True)
    return attended, logsumexp


def _attend_gradient(
    d: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _repeated(key, query), _repeated(value, query)
    d_query, *d_pair = cpu_attention_backward(d, query, keys, values, attended, logsumexp, 0.0, True)
    d_key, d_value = (x if x.shape == key.shape else x.unflatten(1, (key.shape[1], -1)).sum(2) for x in d_pair)
    return d_query, d_key, d_value


def _repeated(x: Float[Tensor, "B kv_heads T D"], query: Float[Tensor, "B heads T D"]) -> Float[Tensor, "B heads T D"]:
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def feed_forward(
    x: Float[Tensor, "N H"],
    norm: Float[Tensor, " H"],
    gate: Float[Tensor, "I H"],
    up: Float[Tensor, "I H"],
    down: Float[Tensor, "H I"],
    *,
    epsilon: float,
    dtype: torch.dtype,
) -> Float[Tensor, "N H"]:
    """x + (silu(n gateᵀ) · n upᵀ) downᵀ of n = rms_norm(x), the second half of a layer."""
    if torch.is_grad_enabled():
        return _FeedForward.apply(x, norm, gate, up, down, epsilon, dtype)
    n = _normed(x, norm, _norm_scale(x, epsilon), dtype)
    weights = ((lowered(gate, dtype), "g"), (lowered(up, dtype), "u"))
    g, u = (torch.mm(n, w.T, out=scratch(name, n, (len(n), len(w)))) for w, name in weights)
    return added(x, silu_out(g, out=g).mul_(u), lowered(down, dtype).T)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        epsilon: float,
        dtype: torch.dtype,
    ) -> Tensor:
        scale = _norm_scale(x, epsilon)
        n = _normed(x, norm, scale, dtype)
        g, u = n @ lowered(gate, dtype).T, n @ lowered(up, dtype).T
        ctx.save_for_backward(x, scale, g, u)
        ctx.weights = (norm, gate, up, down)
        return added(x, silu_out(g, out=scratch("h", g)).mul_(u), lowered(down, dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, g, u = ctx.saved_tensors
        norm, *matrices = ctx.weights
        gate, up, down = (lowered(w, g.dtype) for w in matrices)
        d_norm, d_gate, d_up, d_down = d_weights = [gradient_of(w) for w in ctx.weights]
        n = torch.mul(x, scale, out=scratch("n", x))
        weighted = cast(torch.mul(n, norm, out=scratch("weighted", x)), g.dtype, "normed")
        factor = cast(d, g.dtype, "d")
        s = silu_out(g, out=scratch("s", g))
        h = torch.mul(s, u, out=scratch("h", g))
        add_product_(d_down, factor.T, h)
        d_h = torch.mm(factor, down, out=h)
        d_u = s.mul_(d_h)
        add_product_(d_up, d_u.T, weighted)
        d_g = silu_backward_out(d_h.mul_(u), g, grad_input=d_h)
        add_product_(d_gate, d_g.T, weighted)
        d_n = cast(torch.mm(d_u, up, out=weighted).addmm_(d_g, gate), x.dtype, "d_n")
        d_x = d + _norm_backward(d_n, n, norm, scale, d_norm)
        return d_x, *map(rest, ctx.weights, d_weights), None, None


def _norm_backward(d: Tensor, n: Tensor, weight: Tensor, scale: Tensor, d_weight: Tensor) -> Tensor:
    """The gradient of rms_norm in x, from n = x · scale: dn = d · w and dx = scale (dn − n mean(dn · n)). In place of
    d; the gradient of the weight is added to `d_weight`."""
    product = torch.mul(d, n, out=scratch("product", d))
    d_weight.add_(product.flatten(0, -2).sum(0))
    mean = product.mul_(weight).mean(-1, keepdim=True)
    return d.mul_(weight).addcmul_(n, mean, value=-1).mul_(scale)
