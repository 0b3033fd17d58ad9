"""Log-probs, entropies and values of given responses: one forward pass, LM head on response tokens only."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_cli.rl.divergences import full_kl
from rlhf_cli.rl.head import token_logprobs
from rlhf_cli.rl.packing import pack, packed_states, packs
from rlhf_cli.rl.products import products_dtype, sizes
from rlhf_cli.rl.rollout import Rollout

CHUNK_ELEMENTS = 2**26
"""Of the full KL: tokens × vocabulary held at once, 64M float32 numbers, 256 MB."""

KEEP_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Of a critic's activations, from reading the batch to learning from it."""


def keepable(critic: Any, rollout: Rollout) -> bool:
    """Whether a forward pass over the whole rollout can keep what its backward pass needs."""
    config, device = critic.config, rollout.lengths.device.type
    if config.model_type != "qwen2":
        return False
    tokens = int((rollout.prompt_lengths + rollout.lengths).sum())
    numbers = tokens * config.num_hidden_layers * (2 * config.intermediate_size + 10 * config.hidden_size)
    return 4 * numbers <= KEEP_BYTES.get(device, 0)


def predicting_states(trunk: Any, rollout: Rollout) -> Float[Tensor, "M H"]:
    """Hidden states from which each response token was predicted, in the order of `responses[mask]`.

    Without padding, and with a shared prompt once, where the model can; else as `response_states`.
    """
    if not packs(trunk):
        return response_states(trunk, rollout)[rollout.mask]
    weight = trunk.embed_tokens.weight
    return packed_states(trunk, pack(rollout, sizes(weight, products_dtype(weight))))


def response_states(trunk: nn.Module, rollout: Rollout) -> Float[Tensor, "B R H"]:
    """Hidden states from which each response token was predicted (positions P-1 … T-2), by a padded forward pass."""
    attention = rollout.attention
    positions = (attention.long().cumsum(1) - 1).clamp(min=0)
    output: Any = trunk(input_ids=rollout.ids, attention_mask=attention.long(), position_ids=positions, use_cache=False)
    start = rollout.prompts.shape[1] - 1
    return output.last_hidden_state[:, start : start + rollout.responses.shape[1]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says of given responses; 0 outside them."""

    logprobs: Float[Tensor, "B R"]
    entropies: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"] | None
    """Of a value head on the same trunk, where one was given."""
    full_kl: Float[Tensor, "B R"] | None
    """The KL to the reference over the whole vocabulary, where a reference was given."""


def read(
    model: Any,
    rollout: Rollout,
    *,
    temperature: float,
    value_head: nn.Module | None = None,
    reference: Any | None = None,
    direction: str = "policy_ref",
) -> Reading:
    """One forward pass; the LM head runs on response positions only."""
    mask, head = rollout.mask, model.get_output_embeddings().weight
    states = predicting_states(model.get_decoder(), rollout)
    logprobs, entropies = token_logprobs(states, head, rollout.responses[mask], temperature=temperature)
    values = value_head(states).squeeze(-1).float() if value_head is not None else None
    kl = None
    if reference is not None:
        with torch.no_grad():
            theirs = predicting_states(reference.get_decoder(), rollout)
        their_head = reference.get_output_embeddings().weight
        kl = token_full_kl(states, head, theirs, their_head, temperature=temperature, direction=direction)
    return Reading(
        logprobs=_scatter(logprobs, mask),
        entropies=_scatter(entropies, mask),
        values=None if values is None else _scatter(values, mask),
        full_kl=None if kl is None else _scatter(kl, mask),
    )


def response_logprobs(
    model: Any, rollout: Rollout, *, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probs of the response tokens and entropies of their distributions; 0 outside the response."""
    reading = read(model, rollout, temperature=temperature)
    return reading.logprobs, reading.entropies


def response_values(critic: Any, rollout: Rollout) -> Float[Tensor, "B R"]:
    """V(prompt and response up to before each token); 0 outside the response."""
    mask = rollout.mask
    states = predicting_states(critic.base_model, rollout)
    return _scatter(critic.score(states).squeeze(-1).float(), mask)


def token_full_kl(
    states: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    ref_states: Float[Tensor, "N H"],
    ref_weight: Float[Tensor, "V H"],
    *,
    temperature: float,
    direction: str,
) -> Float[Tensor, " N"]:
    """`divergences.full_kl` of the two softmaxes, chunked over tokens like `token_logprobs`."""
    size = max(1, CHUNK_ELEMENTS // weight.shape[0])
    pieces = [states.new_zeros(0, dtype=torch.float32)]
    for at in range(0, states.shape[0], size):
        ours, theirs = states[at : at + size], ref_states[at : at + size]
        arguments = (ours, weight, theirs, ref_weight.detach(), temperature, direction)
        if torch.is_grad_enabled() and states.shape[0] > size:
            pieces.append(checkpoint(_full_kl, *arguments, use_reentrant=False))
        else:
            pieces.append(_full_kl(*arguments))
    return torch.cat(pieces)


def _full_kl(
    states: Tensor, weight: Tensor, ref_states: Tensor, ref_weight: Tensor, temperature: float, direction: str
) -> Tensor:
    logits = nn.functional.linear(states, weight).float() / temperature
    ref_logits = nn.functional.linear(ref_states, ref_weight).float() / temperature
    return full_kl(logits, ref_logits, direction=direction)


def _scatter(values: Float[Tensor, " N"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
