"""One more token for every row, on the CPU: Qwen2's layers without what a single token does not need.

Queries, keys and values come from one product, and weights lie in memory as products of few rows want them; the cache
is laid out once and a row that is done gives its place to the last one. A GPU has `recorded`; other families decode
through transformers, in `sampling`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from rlhf_cli.rl.packing import packs
from rlhf_cli.rl.products import added, cast, factors_in, lowered, products_dtype
from rlhf_cli.rl.scratch import scratch


@dataclass(frozen=True, slots=True)
class Weights:
    """One layer's: factors of products from the right, what only scales their input or output already in them, but for
    the norms' weights, which are apart where the matrices are shared with training."""

    first: Float[Tensor, " H"] | None
    qkv: Float[Tensor, "H qkv"]
    bias: Float[Tensor, " qkv"]
    out: Float[Tensor, "all H"]
    second: Float[Tensor, " H"] | None
    gate: Float[Tensor, "H I"]
    up: Float[Tensor, "H I"]
    down: Float[Tensor, "I H"]


def plain(trunk: Any) -> bool:
    """Whether this is a Qwen2 as it is read here: packed attention, one kind of angles, its weights whole."""
    known = packs(trunk) and trunk.config.model_type == "qwen2" and trunk.rotary_emb.rope_type == "default"
    return known and all(type(w) is torch.nn.Parameter for w in _first_weights(trunk))


def decodes(trunk: Any) -> bool:
    """Whether `Decoder` knows this model here: on the CPU, its weights in float32."""
    return all(w.device.type == "cpu" and w.dtype == torch.float32 for w in _first_weights(trunk)) and plain(trunk)


def _first_weights(trunk: Any) -> tuple[Tensor, Tensor]:
    return trunk.embed_tokens.weight, trunk.layers[0].self_attn.q_proj.weight


WIDE = 256
"""Hidden size from which products of few rows are faster in bfloat16."""


COPIED = 2**22
"""Numbers of a head that is laid out anew for a rollout: 16 MB."""


class Decoder:
    """Made anew for every rollout: it copies the weights into the form that it wants. Under autocast the products of
    wide models are in its dtype; what they are added to, attention and the logits are float32."""

    def __init__(self, trunk: Any, head: Tensor, cache: Any) -> None:
        self.trunk, self.cache = trunk, cache
        self.dtype = products_dtype(head) if trunk.config.hidden_size >= WIDE else head.dtype
        self.head = laid_out(head) if self.dtype == head.dtype and head.numel() <= COPIED else head.T
        self.unit = 8 if self.dtype == torch.bfloat16 else 1
        """Rows are left out by so many at once: see `products.padded`."""
        inner = trunk.layers[0].self_attn
        self.size, self.groups = inner.head_dim, inner.num_key_value_groups
        self.kv_heads = trunk.config.num_key_value_heads
        self.heads = self.kv_heads * self.groups
        self.floor = head.new_tensor(trunk.config.rms_norm_eps * trunk.config.hidden_size)
        self.norm = _of_unit_rows(trunk.norm)
        self.layers = [_weights(layer, self.dtype) for layer in trunk.layers]
        self.cos, self.sin = angles(trunk, cache.columns)

    @torch.autocast("cpu", enabled=False)
    def logits(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """In memory that the next step's are written to."""
        with factors_in(self.dtype):
            return torch.mm(states, self.head, out=scratch("next logits", states, (len(states), self.head.shape[1])))

    @torch.autocast("cpu", enabled=False)
    def step(
        self, tokens: Int[Tensor, " B"], positions: Int[Tensor, " B"], mask: Bool[Tensor, "B 1 T"] | None
    ) -> Float[Tensor, "B H"]:
        """The last hidden states of the rows' newest tokens, whose keys and values go into the cache."""
        x = embedding(tokens, self.trunk.embed_tokens.weight)
        cos, sin = self.cos[positions], self.sin[positions]
        hidden = None if mask is None else ~mask
        both, count = self.heads + self.kv_heads, len(x)
        for weights, stored in zip(self.layers, self.cache.layers, strict=True):
            qkv = torch.addmm(weights.bias, self._factor(x, weights.first), weights.qkv)
            qkv = qkv.to(x.dtype).view(count, -1, self.size)
            turn_(qkv[:, :both], cos, sin)
            keys, values = stored.add(qkv[:, self.heads :].view(count, 2, self.kv_heads, self.size))
            # one token's attention is two batched products; torch's kernel for it is made for many
            query = qkv[:, : self.heads].reshape(count * self.kv_heads, self.groups, self.size)
            scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2))
            if hidden is not None:
                scores.view(count, self.heads, -1).masked_fill_(hidden, -torch.inf)
            out = torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(count, -1)
            x = added(x, cast(out, self.dtype, "attended"), weights.out)
            h = self._factor(x, weights.second)
            gate, up = torch.mm(h, weights.gate), torch.mm(h, weights.up)
            x = added(x, torch.nn.functional.silu(gate, inplace=True).mul_(up), weights.down)
        return self._unit(x).mul_(self.norm)

    def _factor(self, x: Float[Tensor, "B H"], norm: Float[Tensor, " H"] | None) -> Tensor:
        unit = self._unit(x)
        return unit if norm is None else cast(unit.mul_(norm), self.dtype, "normed")

    def _unit(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """Rows of length 1: x / √(mean x² + ε) is √H times that."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.floor, length, length).rsqrt_()


def angles(trunk: Any, columns: int) -> tuple[Float[Tensor, "T 1 D"], Float[Tensor, "T 1 D"]]:
    """The rotary embedding's tables for `turn_`."""
    positions = torch.arange(columns, device=trunk.embed_tokens.weight.device)
    cos, sin = trunk.rotary_emb(positions.float(), positions[None])  # in float32, whatever the weights are in
    sign = torch.ones_like(sin[0, 0])
    sign[: len(sign) // 2] = -1
    return cos.transpose(0, 1), (sin * sign).transpose(0, 1)


def turn_(
    x: Float[Tensor, "B heads D"], cos: Float[Tensor, "#B #heads D"], sin: Float[Tensor, "#B #heads D"]
) -> Tensor:
    """The rotary embedding, in place; `sin` with a minus where the other half is taken away."""
    halves_changed = x.roll(x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(halves_changed, sin)


def _weights(layer: Any, dtype: torch.dtype) -> Weights:
    inner, mlp = layer.self_attn, layer.mlp
    first, second = _of_unit_rows(layer.input_layernorm), _of_unit_rows(layer.post_attention_layernorm)
    scales = ((inner.q_proj, inner.scaling), (inner.k_proj, 1.0), (inner.v_proj, 1.0))
    qkv = torch.cat([p.weight * scale for p, scale in scales])
    bias = torch.cat([p.bias * scale for p, scale in scales])
    rest = (inner.o_proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    if dtype != qkv.dtype:
        out, gate, up, down = (lowered(w, dtype).T for w in rest)
        return Weights(first, qkv.to(dtype).T, bias.to(dtype), out, second, gate, up, down)
    out, gate, up, down = rest
    qkv, out, gate, up, down = map(laid_out, (qkv * first, out, gate * second, up * second, down))
    return Weights(None, qkv, bias, out, None, gate, up, down)


def _of_unit_rows(norm: Any) -> Float[Tensor, " H"]:
    """A norm's weight for rows of length 1."""
    return norm.weight * norm.weight.shape[0] ** 0.5


APART = 16
"""Numbers between the rows of a weight: rows a power of two apart would share a few places of the cache."""


def laid_out(weight: Float[Tensor, "out in"]) -> Float[Tensor, "in out"]:
    """The transposed weight, its rows side by side: products with 4 to 64 rows take a tenth to three fifths less."""
    memory = weight.new_empty(weight.shape[1], weight.shape[0] + APART)
    return memory[:, : weight.shape[0]].copy_(weight.T.contiguous())  # torch transposes fast into whole memory only
