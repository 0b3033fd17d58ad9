"""One more token for every row, on the CPU: Qwen2's layers without what a single token does not need.

Queries, keys and values come from one product, and weights lie in memory as products of few rows want them; the cache
is laid out once and a row that is done gives its place to the last one. Left out: GPUs (they want CUDA graphs) and
other families; those decode through transformers, in `sampling`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from rlhf_cli.rl.layers import rms_norm, turned
from rlhf_cli.rl.packing import packs


@dataclass(frozen=True, slots=True)
class Weights:
    """One layer's, as `laid_out`."""

    norm: Tensor
    qkv: Float[Tensor, "H qkv"]
    bias: Float[Tensor, " qkv"]
    out: Float[Tensor, "all H"]
    next_norm: Tensor
    gate: Float[Tensor, "H I"]
    up: Float[Tensor, "H I"]
    down: Float[Tensor, "I H"]


def decodes(trunk: Any) -> bool:
    """Whether `Decoder` knows this model here."""
    if not packs(trunk) or trunk.config.model_type != "qwen2" or torch.is_autocast_enabled("cpu"):
        return False
    weights = (trunk.embed_tokens.weight, trunk.layers[0].self_attn.q_proj.weight)
    plain = all(type(w) is torch.nn.Parameter for w in weights)  # not pieces of split ones
    return plain and weights[0].device.type == "cpu" and weights[0].dtype == torch.float32


class Decoder:
    """Made anew for every rollout: it copies the weights into the form that it wants."""

    def __init__(self, trunk: Any, cache: Any) -> None:
        self.trunk, self.cache = trunk, cache
        inner = trunk.layers[0].self_attn
        self.size, self.groups = inner.head_dim, inner.num_key_value_groups
        self.kv_heads = trunk.config.num_key_value_heads
        self.heads, self.scale = self.kv_heads * self.groups, inner.scaling
        self.epsilon = trunk.config.rms_norm_eps
        self.layers = [_weights(layer) for layer in trunk.layers]

    def step(
        self, tokens: Int[Tensor, " B"], positions: Int[Tensor, "B 1"], mask: Bool[Tensor, "B 1 T"] | None
    ) -> Float[Tensor, "B H"]:
        """The last hidden states of the rows' newest tokens, whose keys and values go into the cache."""
        x = embedding(tokens, self.trunk.embed_tokens.weight)
        cos, sin = self.trunk.rotary_emb(x, positions)
        both, count = self.heads + self.kv_heads, len(x)
        for weights, stored in zip(self.layers, self.cache.layers, strict=True):
            h = rms_norm(x, weights.norm, self.epsilon)
            qkv = torch.addmm(weights.bias, h, weights.qkv).view(count, -1, self.size)
            turn = turned(qkv[:, :both], cos, sin, 1)
            keys, values = stored.update(turn[:, self.heads :, None], qkv[:, both:, None])
            # one token's attention is two batched products; torch's kernel for it is made for many
            query = turn[:, : self.heads].mul(self.scale).reshape(count * self.kv_heads, self.groups, self.size)
            scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2))
            if mask is not None:
                scores.view(count, self.heads, -1).masked_fill_(~mask, -torch.inf)
            out = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
            x = torch.addmm(x, out.view(count, -1), weights.out)
            h = rms_norm(x, weights.next_norm, self.epsilon)
            gate, up = torch.mm(h, weights.gate), torch.mm(h, weights.up)
            x = torch.addmm(x, torch.nn.functional.silu(gate, inplace=True).mul_(up), weights.down)
        return rms_norm(x, self.trunk.norm.weight, self.epsilon)


def _weights(layer: Any) -> Weights:
    inner, mlp = layer.self_attn, layer.mlp
    parts = (inner.q_proj, inner.k_proj, inner.v_proj)
    return Weights(
        norm=layer.input_layernorm.weight,
        qkv=laid_out(torch.cat([p.weight for p in parts])),
        bias=torch.cat([p.bias for p in parts]),
        out=laid_out(inner.o_proj.weight),
        next_norm=layer.post_attention_layernorm.weight,
        gate=laid_out(mlp.gate_proj.weight),
        up=laid_out(mlp.up_proj.weight),
        down=laid_out(mlp.down_proj.weight),
    )


APART = 16
"""Numbers between the rows of a weight: rows a power of two apart would share a few places of the cache."""


def laid_out(weight: Float[Tensor, "out in"]) -> Float[Tensor, "in out"]:
    """The transposed weight, its rows side by side: products with 4 to 64 rows take a tenth to three fifths less."""
    memory = weight.new_empty(weight.shape[1], weight.shape[0] + APART)
    return memory[:, : weight.shape[0]].copy_(weight.T.contiguous())  # torch transposes fast into whole memory only
