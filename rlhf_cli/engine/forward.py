"""The fast way's forward passes: packed rollouts with gradients, and prompts into a KV cache."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from rlhf_cli.engine import cpu_layer
from rlhf_cli.engine.casts import keep_casts, products_dtype
from rlhf_cli.engine.decoder import Decoder, LayerWeights, embedding, last_norm, layer_weights, named_weights
from rlhf_cli.engine.gradients import adds, embed
from rlhf_cli.engine.kv_cache import KVCache, LayerCache
from rlhf_cli.engine.layer import Block, block, kept_factors, layer, norm_weight, rms_norm
from rlhf_cli.engine.packing import Packing, attend

_twice = [False]


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Inside, every operation has a second derivative."""
    _twice[0] = True
    try:
        yield
    finally:
        _twice[0] = False


def packed_states(model: Any, decoder: Decoder, packing: Packing) -> Float[Tensor, "M H"]:
    """Last hidden states from which each response token is predicted. Products are in autocast's dtype where that is
    on, else in the weights'."""
    weights = named_weights(model)
    table = embedding(weights, decoder)
    dtype, kind = products_dtype(table), table.device.type
    by_hand = kind == "cpu" and not _twice[0]
    checkpointed = model.training and torch.is_grad_enabled() and checkpoints_activations(model)
    keep = keeps_casts(kind, checkpointed)
    with torch.autocast(kind, enabled=False), _attention_of(kind):  # what is cast, and when, is decided here
        x = _embedded(model, packing.ids, table, decoder)
        angles = decoder.angles(packing.positions)
        angles = (angles[0].to(x.dtype), angles[1].to(x.dtype))
        layers = layer_weights(weights, decoder)
        if keep:
            keep_casts([group for each in layers for group in kept_factors(each)], dtype)
        for i, each in enumerate(layers):
            wanted = packing.predictors if i + 1 == len(layers) else None
            turning = angles if decoder.rotates[i] else None
            if by_hand and cpu_layer.covers(each, decoder):
                compute = partial(cpu_layer.layer, weights=each, decoder=decoder, angles=turning, packing=packing)
                compute = partial(compute, dtype=dtype, wanted=wanted)
            else:
                compute = partial(_layer, weights=each, decoder=decoder, angles=turning, packing=packing)
                compute = partial(compute, dtype=dtype, wanted=wanted, keep=keep)
            x = checkpoint(compute, x, use_reentrant=False) if checkpointed else compute(x)
        x = _last_norm(x, weights, decoder, by_hand)
    return x if packing.direct else x.index_select(0, packing.predictor)


def _attention_of(kind: str) -> AbstractContextManager[None]:
    """Attention kernels that take any shape at once. cuDNN's plan each new one, and no two packed batches are alike;
    where gradients are differentiated again, the caller has chosen."""
    if kind != "cuda" or _twice[0]:
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def keeps_casts(kind: str, checkpointed: bool) -> bool:
    """Whether a GPU keeps the layers' weights in the dtype of products from pass to pass. Without checkpointing each
    pass has them all until its end anyway; with it, one layer's at a time."""
    return kind == "cuda" and not _twice[0] and not checkpointed


def _layer(
    x: Tensor,
    *,
    weights: LayerWeights,
    decoder: Decoder,
    angles: tuple[Tensor, Tensor] | None,
    packing: Packing,
    dtype: torch.dtype,
    wanted: Tensor | None,
    keep: bool,
) -> Tensor:
    """A layer of packed tokens by plain autograd: on a GPU, and where gradients are differentiated again."""
    inside = dtype if x.is_cuda else x.dtype  # the CPU's attention is slow in bfloat16
    see = partial(attend, packing=packing, decoder=decoder, dtype=inside, wanted=wanted, padded=_twice[0])
    return layer(x, block(weights, decoder, dtype, keep=keep), decoder, angles, see, wanted)


def checkpoints_activations(model: Any) -> bool:
    """Whether the model's public switch for gradient checkpointing is on."""
    found = getattr(type(model), "is_activation_checkpointing", None)  # its name since transformers 5.23
    return bool(model.is_activation_checkpointing if found is not None else model.is_gradient_checkpointing)


def _embedded(model: Any, ids: Int[Tensor, " N"], table: Tensor, decoder: Decoder) -> Float[Tensor, "N H"]:
    """The stream's start, float32 at least."""
    padding = model.get_input_embeddings().padding_idx
    # a GPU adds up in any order, where autograd's own sorts first
    if torch.is_grad_enabled() and adds(table) and not table.is_cuda:
        x = embed(ids, table, padding)
    else:
        x = functional.embedding(ids, table, padding)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * decoder.embedding_scale if decoder.embedding_scale != 1 else x


def _last_norm(x: Tensor, weights: dict[str, Tensor], decoder: Decoder, by_hand: bool) -> Tensor:
    weight = last_norm(weights, decoder)
    if by_hand and weight.dtype == x.dtype:
        return cpu_layer.rms_norm(x, weight, decoder.epsilon, decoder.norm_offset)
    return rms_norm(x, norm_weight(weight, decoder), decoder.epsilon)


def prefill(
    model: Any,
    decoder: Decoder,
    cache: KVCache,
    ids: Int[Tensor, "U P"],
    real: Bool[Tensor, "U P"],
    *,
    padded: bool,
    blocks: list[Block] | None = None,
) -> Float[Tensor, "U H"]:
    """Fill the cache with left-padded prompts; their last hidden states, without gradients. `blocks`: the layers'
    weights as products take them, where somebody has them."""
    weights = named_weights(model)
    table = embedding(weights, decoder)
    dtype, (count, width) = products_dtype(table), ids.shape
    mask = _causal_mask(real) if padded else None
    last = torch.arange(1, count + 1, device=ids.device) * width - 1
    with torch.autocast(table.device.type, enabled=False), _attention_of(table.device.type):
        x = _embedded(model, ids.flatten(), table, decoder)
        cos, sin = decoder.angles((real.long().cumsum(1) - 1).clamp(min=0).flatten())
        angles = (cos.to(x.dtype), sin.to(x.dtype))
        for i, (each, store) in enumerate(zip(layer_weights(weights, decoder), cache.layers, strict=True)):
            wanted = last if i + 1 == decoder.layers else None
            see = partial(_attend_prompts, decoder=decoder, store=store, rows=count, mask=mask, wanted=wanted)
            turning = angles if decoder.rotates[i] else None
            x = layer(x, blocks[i] if blocks else block(each, decoder, dtype), decoder, turning, see, wanted)
        return _last_norm(x, weights, decoder, table.device.type == "cpu")


def _causal_mask(real: Bool[Tensor, "U P"]) -> Bool[Tensor, "U 1 P P"]:
    at = torch.arange(real.shape[1], device=real.device)
    # padding sees itself, because a softmax over nothing is not a number
    seen = (at[:, None] >= at) & (real[:, None] | (at[:, None] == at))
    return seen[:, None]


def _attend_prompts(
    heads: Float[Tensor, "N all D"],
    *,
    decoder: Decoder,
    store: LayerCache,
    rows: int,
    mask: Tensor | None,
    wanted: Tensor | None,
) -> Float[Tensor, "K attended"]:
    """Causal attention of left-padded prompts, whose keys and values are stored."""
    parts = heads.view(rows, -1, *heads.shape[1:]).transpose(1, 2)
    query, key, value = parts.split([decoder.heads, decoder.kv_heads, decoder.kv_heads], 1)
    store.prefill(torch.stack([key, value]))
    grouped = decoder.heads != decoder.kv_heads
    if grouped and query.is_cuda:  # no kernel there takes a mask and groups: it would be a dozen operations
        key, value = (x.repeat_interleave(decoder.heads // decoder.kv_heads, 1) for x in (key, value))
        grouped = False
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=decoder.scale,
        enable_gqa=grouped,
    )
    found = out.transpose(1, 2).reshape(len(heads), -1)
    return found if wanted is None else found.index_select(0, wanted)
