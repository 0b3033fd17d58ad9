"""One decoder layer, written once: for prefill, decoding on the CPU, CUDA graphs, and plain autograd.

What differs between these is how weights lie in memory (`Block`) and what attention sees (`attend`). The CPU's forward
pass with gradients written by hand is in `cpu_layer`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rlhf_cli.engine.casts import added, cached_cast, cast, factor, rows_of
from rlhf_cli.engine.decoder import Decoder, LayerWeights, Linear

Attend = Callable[[Tensor], Tensor]
"""Of queries, keys and values in one tensor [N, heads + 2 kv_heads, D]: what is attended to, [K, heads D]."""


@dataclass(frozen=True, slots=True)
class Block:
    """A layer's weights as products from the right take them, [in, out]; biases and norms are None where there are
    none, or where they are in the matrices already (`eager_decode`)."""

    attention_norm: Float[Tensor, " H"] | None
    qkv: Float[Tensor, "H qkv"]
    qkv_bias: Float[Tensor, " qkv"] | None
    head_norm: Float[Tensor, "both D"] | None
    """Of queries and keys."""
    out: Float[Tensor, "all H"]
    out_bias: Float[Tensor, " H"] | None
    mlp_norm: Float[Tensor, " H"] | None
    gate: Float[Tensor, "H I"] | None
    """None: `up` holds gate and up side by side."""
    gate_bias: Float[Tensor, " I"] | None
    up: Float[Tensor, "H _"]
    up_bias: Float[Tensor, " _"] | None
    down: Float[Tensor, "I H"]
    down_bias: Float[Tensor, " H"] | None
    floor: Float[Tensor, ""] | None = None
    """ε H, where the norms are in the matrices."""


def block(
    weights: LayerWeights, decoder: Decoder, dtype: torch.dtype, *, joined: bool = False, keep: bool = False
) -> Block:
    """The weights in the dtype of products, norms in float32 at least; differentiable. `joined`: gate and up in one;
    `keep`: casts are kept (`casts.factor`)."""

    def lowered(weight: Tensor) -> Tensor:
        unrecorded = not torch.is_grad_enabled() and weight.device.type == "cpu"
        return cached_cast(weight, dtype) if unrecorded else factor((weight,), dtype, keep=keep)

    def bias(linear: Linear) -> Tensor | None:
        return None if linear[1] is None else factor((linear[1],), dtype, keep=keep)

    projections = (weights.query, weights.key, weights.value)
    pair = (weights.gate, weights.up)
    return Block(
        attention_norm=norm_weight(weights.attention_norm, decoder),
        qkv=_side_by_side(projections, dtype, keep, lowered).T,
        qkv_bias=joined_biases(projections, dtype, keep=keep),
        head_norm=_head_norm(weights, decoder),
        out=lowered(weights.out[0]).T,
        out_bias=bias(weights.out),
        mlp_norm=norm_weight(weights.mlp_norm, decoder),
        gate=None if joined else lowered(weights.gate[0]).T,
        gate_bias=None if joined else bias(weights.gate),
        up=(torch.cat([lowered(weight) for weight, _ in pair]) if joined else lowered(weights.up[0])).T,
        up_bias=joined_biases(pair, dtype) if joined else bias(weights.up),
        down=lowered(weights.down[0]).T,
        down_bias=bias(weights.down),
    )


def _side_by_side(
    linears: tuple[Linear, ...], dtype: torch.dtype, keep: bool, lowered: Callable[[Tensor], Tensor]
) -> Float[Tensor, "all H"]:
    if keep:
        return factor(tuple(weight for weight, _ in linears), dtype, keep=True)
    return torch.cat([lowered(weight) for weight, _ in linears])


def joined_biases(linears: tuple[Linear, ...], dtype: torch.dtype, *, keep: bool = False) -> Tensor | None:
    if all(b is None for _, b in linears):
        return None
    if keep and (there := tuple(b for _, b in linears if b is not None)) and len(there) == len(linears):
        return factor(there, dtype, keep=True)
    return torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in linears]).to(dtype)


def norm_weight(weight: Float[Tensor, " H"], decoder: Decoder) -> Float[Tensor, " H"]:
    """What a norm multiplies by, in float32 at least."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide + decoder.norm_offset if decoder.norm_offset else wide


def kept_factors(weights: LayerWeights) -> list[tuple[Tensor, ...]]:
    """The groups of which `block` takes kept casts."""
    projections = (weights.query, weights.key, weights.value)
    groups = [tuple(weight for weight, _ in projections)]
    if len(biases := tuple(b for _, b in projections if b is not None)) == len(projections):
        groups.append(biases)
    for linear in (weights.out, weights.gate, weights.up, weights.down):
        groups += [(part,) for part in linear if part is not None]
    return groups


def pairs_of(place: Block, weights: LayerWeights, decoder: Decoder) -> list[tuple[Tensor, Tensor]]:
    """(memory, what belongs there), for the memory of a joined `block`."""
    projections, pair = (weights.query, weights.key, weights.value), (weights.gate, weights.up)
    norms = ((place.attention_norm, weights.attention_norm), (place.mlp_norm, weights.mlp_norm))
    found = [(memory, norm_weight(norm, decoder)) for memory, norm in norms if memory is not None]
    if place.head_norm is not None and (head_norm := _head_norm(weights, decoder)) is not None:
        found.append((place.head_norm, head_norm))
    for memory, bias, linears in (
        (place.qkv, place.qkv_bias, projections),
        (place.out, place.out_bias, (weights.out,)),
        (place.up, place.up_bias, pair),
        (place.down, place.down_bias, (weights.down,)),
    ):
        found += rows_of(memory.T, tuple(weight for weight, _ in linears))
        if bias is not None:
            found += rows_of(bias, tuple(w.new_zeros(len(w)) if b is None else b for w, b in linears))
    return found


def _head_norm(weights: LayerWeights, decoder: Decoder) -> Tensor | None:
    if weights.query_norm is None or weights.key_norm is None:
        return None
    pair = ((weights.query_norm, decoder.heads), (weights.key_norm, decoder.kv_heads))
    return torch.cat([norm_weight(w, decoder).expand(heads, -1) for w, heads in pair])


def layer(
    x: Float[Tensor, "N H"],
    weights: Block,
    decoder: Decoder,
    angles: tuple[Tensor, Tensor] | None,
    attend: Attend,
    wanted: Int[Tensor, " K"] | None = None,
) -> Float[Tensor, "N H"] | Float[Tensor, "K H"]:
    """x + attention of norm(x), and of that y: y + feed-forward of norm(y).

    x is the stream, float32 at least; products are in the weights' dtype. `angles`: of the rotary embedding, None in a
    layer without one. `wanted`: only for these tokens, which `attend` gives.
    """
    both, dtype = decoder.heads + decoder.kv_heads, weights.qkv.dtype
    n = _factor(x, weights.attention_norm, weights.floor, decoder, dtype)
    heads = _linear(n, weights.qkv, weights.qkv_bias).to(x.dtype).view(len(x), -1, decoder.head_size)
    if weights.head_norm is not None:
        normed = rms_norm(heads[:, :both], weights.head_norm, decoder.epsilon)
        heads = torch.cat([normed, heads[:, both:]], 1)
    if angles is not None and torch.is_grad_enabled():
        heads = torch.cat([turn(heads[:, :both], *angles), heads[:, both:]], 1)
    elif angles is not None:
        turn_(heads[:, :both], *angles)
    attended = cast(attend(heads), dtype, "attended")
    x = x if wanted is None else x.index_select(0, wanted)
    x = added(x, attended, weights.out, weights.out_bias, decoder.residual_scale)
    n = _factor(x, weights.mlp_norm, weights.floor, decoder, dtype)
    if weights.gate is None:
        gate, up = _linear(n, weights.up, weights.up_bias).chunk(2, 1)
    else:
        gate, up = _linear(n, weights.gate, weights.gate_bias), _linear(n, weights.up, weights.up_bias)
    inner = activate(gate, decoder.activation) * up
    return added(x, inner, weights.down, weights.down_bias, decoder.residual_scale)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def activate(x: Tensor, name: str) -> Tensor:
    """Of x, which nobody needs any more."""
    match name:
        case "silu":
            return functional.silu(x, inplace=not torch.is_grad_enabled())
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")
        case _:
            return functional.gelu(x)


def _factor(x: Tensor, weight: Tensor | None, floor: Tensor | None, decoder: Decoder, dtype: torch.dtype) -> Tensor:
    """norm(x) as a product's factor; without its weight where that is in the matrix: then rows of length 1."""
    if weight is None:
        assert floor is not None
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(floor, length, length).rsqrt_()
    return cast(rms_norm(x, weight, decoder.epsilon), dtype, "normed")


def rms_norm(x: Float[Tensor, "*B H"], weight: Float[Tensor, "*#w H"], epsilon: float) -> Float[Tensor, "*B H"]:
    """weight · x / √(mean x² + ε)."""
    if x.is_cuda and weight.ndim == 1:
        return functional.rms_norm(x, x.shape[-1:], weight, epsilon)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def turn(x: Float[Tensor, "N heads D"], cos: Float[Tensor, "N 1 D"], sin: Float[Tensor, "N 1 D"]) -> Tensor:
    """The rotary embedding: pairs (i, i + D/2) turned by an angle, of `Decoder.angles`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def turn_(
    x: Float[Tensor, "N heads D"], cos: Float[Tensor, "#N #heads D"], sin: Float[Tensor, "#N #heads D"]
) -> Tensor:
    """The same in place."""
    other = x.roll(x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(other, sin)
