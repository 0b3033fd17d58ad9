"""The two halves of a decoder layer with gradients written by hand, for the CPU: `layer`, with few passes over memory.

A layer's products are near the machine's peak; what stands between them (norms, rotations, the gated activation) is
bound by memory. Temporaries that do not outlive an operation are in scratch memory, and what can be computed again in
one pass is not kept. Products are in `dtype`; x, the weights and all gradients are in one precision.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_cli.engine.casts import add_product_, added, cached_cast, cast
from rlhf_cli.engine.decoder import Decoder, LayerWeights
from rlhf_cli.engine.gradients import gradient_of, rest
from rlhf_cli.engine.packing import Packing
from rlhf_cli.engine.scratch import scratch
from rlhf_cli.internals.torch_private import (
    activation_backward_out,
    activation_out,
    cpu_attention,
    cpu_attention_backward,
)

Angles = tuple[Tensor, Tensor] | None


def covers(weights: LayerWeights, decoder: Decoder) -> bool:
    """Whether these functions know such a layer."""
    biases = (weights.out[1], weights.gate[1], weights.up[1], weights.down[1])
    return decoder.residual_scale == 1 and all(b is None for b in biases)


def layer(
    x: Float[Tensor, "N H"],
    weights: LayerWeights,
    decoder: Decoder,
    angles: Angles,
    packing: Packing,
    dtype: torch.dtype,
    wanted: Int[Tensor, " K"] | None,
) -> Float[Tensor, "N H"] | Float[Tensor, "K H"]:
    """A whole layer of packed tokens; `wanted`: only for these of them."""
    options = AttentionOptions(decoder, angles, packing, wanted, dtype)
    x = self_attention(x, weights, options)
    return feed_forward(x, weights, decoder, dtype)


def rms_norm(
    x: Float[Tensor, "*B H"], weight: Float[Tensor, " H"], epsilon: float, offset: float = 0.0
) -> Float[Tensor, "*B H"]:
    """(offset + weight) · x / √(mean x² + ε)."""
    if not torch.is_grad_enabled():
        return (x * _norm_scale(x, epsilon)).mul_(_effective(weight, offset))
    return _RMSNorm.apply(x, weight, epsilon, offset)


def _effective(weight: Tensor, offset: float) -> Tensor:
    return weight + offset if offset else weight


def _norm_scale(x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        scale = _norm_scale(x, epsilon)
        ctx.save_for_backward(x, scale)
        ctx.weight, ctx.offset = weight, offset
        return (x * scale).mul_(_effective(weight, offset))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale), weight = ctx.saved_tensors, ctx.weight
        n = torch.mul(x, scale, out=scratch("n", x))
        d_weight = gradient_of(weight)
        d_x = _norm_backward(d.clone(), n, _effective(weight, ctx.offset), scale, d_weight)
        return d_x, rest(weight, d_weight), None, None


def _norm_backward(d: Tensor, n: Tensor, weight: Tensor, scale: Tensor, d_weight: Tensor) -> Tensor:
    """The gradient of rms_norm in x, from n = x · scale: dn = d · w and dx = scale (dn − n mean(dn · n)). In place of
    d; the gradient of the weight is added to `d_weight`."""
    product = torch.mul(d, n, out=scratch("product", d))
    d_weight.add_(product.flatten(0, -2).sum(0))
    mean = product.mul_(weight).mean(-1, keepdim=True)
    return d.mul_(weight).addcmul_(n, mean, value=-1).mul_(scale)


def turned(x: Float[Tensor, "N heads D"], angles: Angles, sign: int) -> Float[Tensor, "N heads D"]:
    """The rotary embedding by sign times the angles (of `Decoder.angles`), unrecorded."""
    if angles is None:
        return x
    (cos, sin), half = angles, x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    decoder: Decoder
    angles: Angles
    packing: Packing
    wanted: Int[Tensor, " K"] | None
    """Packed tokens to compute; None: all."""
    dtype: torch.dtype
    """Of products."""


def self_attention(
    x: Float[Tensor, "N H"], weights: LayerWeights, options: AttentionOptions
) -> Float[Tensor, "N H"] | Float[Tensor, "K H"]:
    """x + attention(q, k, v) outᵀ with q, k and v linear in n = rms_norm(x), q and k turned; causal, within each
    rollout. The first half of a layer."""
    linears = (weights.query, weights.key, weights.value)
    parameters = (w for pair in linears for w in pair)
    given: tuple[Any, ...] = (weights.attention_norm, weights.out[0], *parameters)
    given = (*given, weights.query_norm, weights.key_norm)
    if torch.is_grad_enabled():
        return _SelfAttention.apply(x, options, *given)
    n = _normed(x, given[0], _norm_scale(x, options.decoder.epsilon), options)
    parts, _ = _queries_keys_values(n, given, options)
    attended, _ = _attend(*parts, scaling=options.decoder.scale)
    return added(_at(x, options.wanted), _attended_rows(attended, options), cached_cast(given[1], options.dtype).T)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: AttentionOptions, *weights: Any) -> Tensor:
        norm, out = weights[:2]
        scale = _norm_scale(x, options.decoder.epsilon)
        n = _normed(x, norm, scale, options)
        parts, raw = _queries_keys_values(n, weights, options, keep=True)
        attended, logsumexp = _attend(*parts, scaling=options.decoder.scale)
        ctx.save_for_backward(x, scale, *parts, attended, logsumexp, *raw)
        ctx.weights, ctx.options = weights, options
        return added(_at(x, options.wanted), _attended_rows(attended, options), cached_cast(out, options.dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *attention = ctx.saved_tensors
        attention, raw = attention[:5], attention[5:]
        options, (norm, out, *weights) = ctx.options, ctx.weights
        packing, wanted, dtype, offset = options.packing, options.wanted, options.dtype, options.decoder.norm_offset
        gradients: list[Any] = [None if w is None else gradient_of(w) for w in ctx.weights]
        d_norm, d_out, *d_weights = gradients
        attended, factor = attention[3], cast(d, dtype, "d")
        add_product_(d_out, factor.T, _attended_rows(attended, options))
        d_rows = torch.mm(factor, cached_cast(out, dtype), out=scratch("d_attended", factor, (len(d), out.shape[1])))
        d_rows = cast(d_rows, x.dtype, "d_attended")
        d_attended = packing.gathered_gradient(_at_gradient(d_rows, wanted, len(x)))
        d_attended = d_attended.view(attended.transpose(1, 2).shape).transpose(1, 2)
        d_parts = _attend_gradient(d_attended, *attention, scaling=options.decoder.scale)
        n = torch.mul(x, scale, out=scratch("n", x))
        norm = _effective(norm, offset)
        weighted = cast(torch.mul(n, norm, out=scratch("weighted", x)), dtype, "normed")
        d_n = scratch("d_n", x, dtype=dtype)
        for i, d_part in enumerate(d_parts):
            d_rows, weight = packing.spread_gradient(_rows(d_part)), cached_cast(weights[2 * i], dtype)
            if i < 2:
                d_heads = turned(d_rows.view(len(x), -1, options.decoder.head_size), options.angles, -1)
                if raw:
                    d_heads = _head_norm_backward(d_heads, raw[i], weights[6 + i], d_weights[6 + i], options.decoder)
                d_rows = d_heads.view(len(x), -1)
            if d_weights[2 * i + 1] is not None:
                d_weights[2 * i + 1].add_(d_rows.sum(0))
            d_rows = cast(d_rows, dtype, "d_projected")
            torch.mm(d_rows, weight, out=d_n) if i == 0 else d_n.addmm_(d_rows, weight)
            add_product_(d_weights[2 * i], d_rows.T, weighted)
        d_n = cast(d_n, x.dtype, "d_n")
        d_x = _at_gradient(d, wanted, len(x)) + _norm_backward(d_n, n, norm, scale, d_norm)
        left = (None if w is None else rest(w, g) for w, g in zip(ctx.weights, gradients, strict=True))
        return d_x, None, *left


def _head_norm_backward(d: Tensor, raw: Tensor, weight: Tensor, d_weight: Tensor, decoder: Decoder) -> Tensor:
    """The gradient of the norm of queries or keys in what was normed."""
    scale = _norm_scale(raw, decoder.epsilon)
    return _norm_backward(d.contiguous(), raw * scale, _effective(weight, decoder.norm_offset), scale, d_weight)


def _attended_rows(attended: Tensor, options: AttentionOptions) -> Tensor:
    """What attention gave at the packed tokens that are wanted, as a product's factor."""
    return cast(_at(options.packing.gathered(_rows(attended)), options.wanted), options.dtype, "attended")


def _normed(x: Tensor, norm: Tensor | None, scale: Tensor, options: AttentionOptions) -> Tensor:
    """The factor of products: x · scale · norm, in scratch memory."""
    assert norm is not None
    norm = _effective(norm, options.decoder.norm_offset)
    return cast(torch.mul(x, scale, out=scratch("n", x)).mul_(norm), options.dtype, "normed")


def _queries_keys_values(
    n: Tensor, weights: tuple[Any, ...], options: AttentionOptions, keep: bool = False
) -> tuple[list[Float[Tensor, "B heads T D"]], list[Float[Tensor, "N _ D"]]]:
    """For attention, in the precision of the stream (attention is slow in bfloat16); and, where `keep`, queries and
    keys before their norm, if they have one."""
    packing, size, wide = options.packing, options.decoder.head_size, torch.promote_types(n.dtype, torch.float32)
    parts, raw = [], []
    for i, (weight, bias) in enumerate(zip(weights[2:8:2], weights[3:8:2], strict=True)):
        normed = weights[8 + i] if i < 2 else None
        # what is cast, turned, normed or spread is copied by that
        copied = (i < 2 and (options.angles is not None or normed is not None)) or not packing.whole
        passing = (copied and not (keep and normed is not None)) or n.dtype != wide
        memory = scratch("projected", n, (len(n), len(weight))) if passing else n.new_empty(len(n), len(weight))
        factor = cached_cast(weight, n.dtype).T
        if bias is None:
            rows = torch.mm(n, factor, out=memory)
        else:
            rows = torch.addmm(cached_cast(bias, n.dtype), n, factor, out=memory)
        rows = cast(rows, wide, "wide") if copied and not (keep and normed is not None) else rows.to(wide)
        heads = rows.view(len(n), -1, size)
        if normed is not None:
            if keep:
                raw.append(heads)
            scale = _norm_scale(heads, options.decoder.epsilon)
            heads = (heads * scale).mul_(_effective(normed, options.decoder.norm_offset))
        if i < 2:
            heads = turned(heads, options.angles, 1)
        rows = packing.spread(heads.reshape(len(n), -1))
        parts.append(rows.view(*packing.place.shape, *heads.shape[1:]).transpose(1, 2))
    return parts, raw


def _at(x: Float[Tensor, "N C"], wanted: Int[Tensor, " K"] | None) -> Tensor:
    """The rows that are wanted."""
    return x if wanted is None else x.index_select(0, wanted)


def _at_gradient(d: Float[Tensor, "K C"], wanted: Int[Tensor, " K"] | None, count: int) -> Tensor:
    return d if wanted is None else d.new_zeros(count, d.shape[1]).index_copy_(0, wanted, d)


def _rows(x: Float[Tensor, "B heads T D"]) -> Float[Tensor, "places all"]:
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def _attend(
    query: Float[Tensor, "B heads T D"],
    key: Float[Tensor, "B kv_heads T D"],
    value: Float[Tensor, "B kv_heads T D"],
    *,
    scaling: float,
) -> tuple[Float[Tensor, "B heads T D"], Tensor]:
    """Causal attention, and what its gradient needs; a head of keys and values serves several of queries."""
    keys, values = _repeated(key, query), _repeated(value, query)
    attended, logsumexp = cpu_attention(query, keys, values, 0.0, True, scale=scaling)
    return attended, logsumexp


def _attend_gradient(
    d: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor, logsumexp: Tensor, *, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _repeated(key, query), _repeated(value, query)
    found = cpu_attention_backward(d, query, keys, values, attended, logsumexp, 0.0, True, scale=scaling)
    d_query, *d_pair = found
    d_key, d_value = (x if x.shape == key.shape else x.unflatten(1, (key.shape[1], -1)).sum(2) for x in d_pair)
    return d_query, d_key, d_value


def _repeated(x: Float[Tensor, "B kv_heads T D"], query: Float[Tensor, "B heads T D"]) -> Float[Tensor, "B heads T D"]:
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def feed_forward(
    x: Float[Tensor, "N H"], weights: LayerWeights, decoder: Decoder, dtype: torch.dtype
) -> Float[Tensor, "N H"]:
    """x + (act(n gateᵀ) · n upᵀ) downᵀ of n = rms_norm(x), the second half of a layer."""
    given = (weights.mlp_norm, weights.gate[0], weights.up[0], weights.down[0])
    if torch.is_grad_enabled():
        return _FeedForward.apply(x, decoder, dtype, *given)
    norm, gate, up, down = given
    scale = _norm_scale(x, decoder.epsilon)
    n = torch.mul(x, scale, out=scratch("n", x)).mul_(_effective(norm, decoder.norm_offset))
    n = cast(n, dtype, "normed")
    factors = ((cached_cast(gate, dtype), "g"), (cached_cast(up, dtype), "u"))
    g, u = (torch.mm(n, w.T, out=scratch(name, n, (len(n), len(w)))) for w, name in factors)
    return added(x, activation_out(decoder.activation, g, out=g).mul_(u), cached_cast(down, dtype).T)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, decoder: Decoder, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        norm, gate, up, down = weights
        scale = _norm_scale(x, decoder.epsilon)
        n = torch.mul(x, scale, out=scratch("n", x)).mul_(_effective(norm, decoder.norm_offset))
        n = cast(n, dtype, "normed")
        g, u = n @ cached_cast(gate, dtype).T, n @ cached_cast(up, dtype).T
        ctx.save_for_backward(x, scale, g, u)
        ctx.weights, ctx.decoder = weights, decoder
        hidden = activation_out(decoder.activation, g, out=scratch("h", g)).mul_(u)
        return added(x, hidden, cached_cast(down, dtype).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, g, u = ctx.saved_tensors
        norm, *matrices = ctx.weights
        norm, activation = _effective(norm, ctx.decoder.norm_offset), ctx.decoder.activation
        gate, up, down = (cached_cast(w, g.dtype) for w in matrices)
        d_norm, d_gate, d_up, d_down = d_weights = [gradient_of(w) for w in ctx.weights]
        n = torch.mul(x, scale, out=scratch("n", x))
        weighted = cast(torch.mul(n, norm, out=scratch("weighted", x)), g.dtype, "normed")
        factor = cast(d, g.dtype, "d")
        s = activation_out(activation, g, out=scratch("s", g))
        h = torch.mul(s, u, out=scratch("h", g))
        add_product_(d_down, factor.T, h)
        d_h = torch.mm(factor, down, out=h)
        d_u = s.mul_(d_h)
        add_product_(d_up, d_u.T, weighted)
        d_g = activation_backward_out(activation, d_h.mul_(u), g, out=d_h)
        add_product_(d_gate, d_g.T, weighted)
        d_n = cast(torch.mm(d_u, up, out=weighted).addmm_(d_g, gate), x.dtype, "d_n")
        d_x = d + _norm_backward(d_n, n, norm, scale, d_norm)
        return d_x, None, None, *map(rest, ctx.weights, d_weights)
