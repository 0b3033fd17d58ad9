"""One more token for every row, operation by operation: `layer` without what a single token does not need. For the CPU.

Queries, keys and values come from one product, and weights lie in memory as products of few rows want them; the cache
is laid out once and a row that is done gives its place to the last one. A GPU has `cuda_graph_decode`, and comes here
where that is switched off.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding as embedded

from rlhf_cli.engine.casts import factors_in, in_float32, products_dtype
from rlhf_cli.engine.decoder import Decoder, embedding, last_norm, layer_weights, named_weights
from rlhf_cli.engine.kv_cache import KVCache, LayerCache
from rlhf_cli.engine.layer import Block, block, layer, norm_weight
from rlhf_cli.engine.scratch import scratch

WIDE = 256
"""Hidden size from which products of few rows are faster in bfloat16."""


COPIED = 2**22
"""Numbers of a head that is laid out anew for a rollout: 16 MB."""


class EagerDecoder:
    """Made anew for every rollout: it copies the weights into the form that it wants. Under autocast the products of
    wide models are in its dtype; what they are added to, attention and the logits are float32."""

    def __init__(self, model: Any, decoder: Decoder, head: Tensor, cache: KVCache) -> None:
        weights = named_weights(model)
        self.decoder, self.cache, self.table = decoder, cache, embedding(weights, decoder)
        wide = torch.promote_types(head.dtype, torch.float32)
        self.dtype = products_dtype(head) if decoder.hidden >= WIDE or head.is_cuda else wide
        head = head.to(self.dtype if head.is_cuda else wide)
        self.head = laid_out(head) if self.dtype == wide and head.numel() <= COPIED else head.T
        self.unit = 8 if self.dtype == torch.bfloat16 else 1
        """Rows are left out by so many at once: see `casts.padded`."""
        self.floor = torch.tensor(decoder.epsilon * decoder.hidden, dtype=wide, device=head.device)
        self.norm = norm_weight(last_norm(weights, decoder), decoder) * decoder.hidden**0.5
        found = (block(each, decoder, self.dtype) for each in layer_weights(weights, decoder))
        self.layers = [_folded(each, decoder) if self.dtype == wide else _scaled(each, decoder) for each in found]
        positions = torch.arange(cache.columns, device=head.device)
        self.cos, self.sin = (table.to(wide) for table in decoder.angles(positions))

    def logits(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """Before the logit scale, in memory that the next step's are written to."""
        with torch.autocast(states.device.type, enabled=False):
            if states.is_cuda:
                return in_float32(torch.mm, states.to(self.head.dtype), self.head)
            out = scratch("next logits", states, (len(states), self.head.shape[1]))
            with factors_in(self.dtype):
                return torch.mm(states, self.head, out=out)

    def step(
        self, tokens: Int[Tensor, " B"], positions: Int[Tensor, " B"], mask: Bool[Tensor, "B 1 T"] | None
    ) -> Float[Tensor, "B H"]:
        """The last hidden states of the rows' newest tokens, whose keys and values go into the cache."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self._step(tokens, positions, mask)

    def _step(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        decoder, x = self.decoder, embedded(tokens, self.table).to(self.floor.dtype)
        if decoder.embedding_scale != 1:
            x = x * decoder.embedding_scale
        angles = self.cos[positions], self.sin[positions]
        hidden = None if mask is None else ~mask
        for weights, store, turns in zip(self.layers, self.cache.layers, decoder.rotates, strict=True):
            see = partial(attend, decoder=decoder, store=store, hidden=hidden)
            x = layer(x, weights, decoder, angles if turns else None, see)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self.floor, length, length).rsqrt_()).mul_(self.norm)


def attend(
    heads: Float[Tensor, "B all D"], *, decoder: Decoder, store: LayerCache, hidden: Bool[Tensor, "B 1 T"] | None
) -> Float[Tensor, "B attended"]:
    """Attention of one token a row; queries come scaled. Two batched products: torch's kernel is made for many."""
    count, kv_heads, size = len(heads), decoder.kv_heads, decoder.head_size
    keys, values = store.add(heads[:, decoder.heads :].view(count, 2, kv_heads, size))
    query = heads[:, : decoder.heads].reshape(count * kv_heads, -1, size)
    scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2))
    if hidden is not None:
        scores.view(count, decoder.heads, -1).masked_fill_(hidden, -torch.inf)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(count, -1)


def _scaled(weights: Block, decoder: Decoder) -> Block:
    """The scale of attention scores is in the queries."""
    if weights.head_norm is not None:
        scales = weights.head_norm.new_ones(len(weights.head_norm), 1)
        scales[: decoder.heads] = decoder.scale
        return replace(weights, head_norm=weights.head_norm * scales)
    scales = weights.qkv.new_ones(weights.qkv.shape[1])
    scales[: decoder.heads * decoder.head_size] = decoder.scale
    bias = None if weights.qkv_bias is None else weights.qkv_bias * scales
    return replace(weights, qkv=weights.qkv * scales, qkv_bias=bias)


def _folded(weights: Block, decoder: Decoder) -> Block:
    """The norms' weights are in the matrices, which lie as products of few rows want them."""
    weights, root = _scaled(weights, decoder), decoder.hidden**0.5
    assert weights.attention_norm is not None
    assert weights.mlp_norm is not None
    assert weights.gate is not None
    first, second = weights.attention_norm * root, weights.mlp_norm * root
    return replace(
        weights,
        attention_norm=None,
        qkv=laid_out(weights.qkv.T * first),
        out=laid_out(weights.out.T),
        mlp_norm=None,
        gate=laid_out(weights.gate.T * second),
        up=laid_out(weights.up.T * second),
        down=laid_out(weights.down.T),
        floor=first.new_tensor(decoder.epsilon * decoder.hidden),
    )


APART = 16
"""Numbers between the rows of a weight: rows a power of two apart would share a few places of the cache."""


def laid_out(weight: Float[Tensor, "out in"]) -> Float[Tensor, "in out"]:
    """The transposed weight, its rows side by side: products with 4 to 64 rows take a tenth to three fifths less."""
    memory = weight.new_empty(weight.shape[1], weight.shape[0] + APART)
    return memory[:, : weight.shape[0]].copy_(weight.T.contiguous())  # torch transposes fast into whole memory only
