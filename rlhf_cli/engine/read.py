"""Log-probs, entropies and values of given responses: one forward pass, LM head on response tokens only."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_cli.engine import gate, plain
from rlhf_cli.engine.casts import products_dtype, sizes
from rlhf_cli.engine.decoder import Decoder
from rlhf_cli.engine.forward import packed_states
from rlhf_cli.engine.lm_head import logit_logprobs, token_logprobs
from rlhf_cli.engine.packing import pack
from rlhf_cli.rl.divergences import full_kl
from rlhf_cli.rl.rollout import Rollout

CHUNK_ELEMENTS = 2**26
"""Of the full KL: tokens × vocabulary held at once, 64M float32 numbers, 256 MB."""

KEEP_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Of a critic's activations, from reading the batch to learning from it."""


def keepable(critic: Any, rollout: Rollout) -> bool:
    """Whether a forward pass over the whole rollout can keep what its backward pass needs."""
    decoder, device = gate.fast(critic.base_model, rollout.ids.shape[1]), rollout.device.type
    if decoder is None:
        return False
    tokens = int((rollout.prompt_lengths + rollout.lengths).sum())
    numbers = tokens * decoder.layers * (2 * decoder.intermediate + 10 * decoder.hidden)
    return 4 * numbers <= KEEP_BYTES.get(device, 0)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model predicts each response token from, in the order of `responses[mask]`."""

    states: Float[Tensor, "M _"]
    """What the head is given; the plain way's are logits already, where `head` is None."""
    head: Float[Tensor, "V H"] | None
    scale: float
    """Of the logits."""
    values: Float[Tensor, " M"] | None

    def logprobs(self, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """(log-probs of the labels, entropies)."""
        if self.head is None:
            return logit_logprobs(self.states, labels, temperature=temperature)
        return token_logprobs(self.states, self.head, labels, temperature=temperature / self.scale)


def predictions(model: Any, rollout: Rollout, value_head: nn.Module | None = None) -> Predictions:
    """One forward pass. The fast way runs without padding and with a shared prompt once."""
    decoder = gate.fast(model, rollout.ids.shape[1])
    if decoder is not None:
        states = _packed(model, decoder, rollout)
        values = None if value_head is None else value_head(states).squeeze(-1).float()
        return Predictions(states, model.get_output_embeddings().weight, decoder.logit_scale, values)
    inputs: list[Tensor] | None = None if value_head is None else []
    logits = plain.response_outputs(model, rollout, gate.facts_of(model), inputs)
    values = None if value_head is None or not inputs else value_head(inputs[-1]).squeeze(-1).float()
    return Predictions(logits, None, 1.0, values)


def _packed(model: Any, decoder: Decoder, rollout: Rollout) -> Float[Tensor, "M H"]:
    weight = model.get_input_embeddings().weight
    return packed_states(model, decoder, pack(rollout, sizes(weight, products_dtype(weight))))


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
    places, shape = rollout.places, rollout.responses.shape
    seen = predictions(model, rollout, value_head)
    logprobs, entropies = seen.logprobs(rollout.responses.flatten()[places], temperature)
    kl = None
    if reference is not None:
        with torch.no_grad():
            theirs = predictions(reference, rollout)
        kl = token_full_kl(
            seen.states,
            seen.head,
            theirs.states,
            theirs.head,
            temperature=temperature / seen.scale,
            ref_temperature=temperature / theirs.scale,
            direction=direction,
        )
    return Reading(
        logprobs=_spread(logprobs, places, shape),
        entropies=_spread(entropies, places, shape),
        values=None if seen.values is None else _spread(seen.values, places, shape),
        full_kl=None if kl is None else _spread(kl, places, shape),
    )


def response_logprobs(
    model: Any, rollout: Rollout, *, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probs of the response tokens and entropies of their distributions; 0 outside the response."""
    reading = read(model, rollout, temperature=temperature)
    return reading.logprobs, reading.entropies


def response_values(critic: Any, rollout: Rollout) -> Float[Tensor, "B R"]:
    """V(prompt and response up to before each token); 0 outside the response."""
    trunk = critic.base_model
    decoder = gate.fast(trunk, rollout.ids.shape[1])
    if decoder is not None:
        states = _packed(trunk, decoder, rollout)
    else:
        facts, inputs = gate.facts_of(trunk), list[Tensor]()
        has_head = trunk.get_output_embeddings() is not None
        states = plain.response_outputs(trunk, rollout, facts, inputs if has_head else None)
        states = inputs[-1] if has_head else states
    return _spread(critic.score(states).squeeze(-1).float(), rollout.places, rollout.responses.shape)


def token_full_kl(
    states: Float[Tensor, "N _"],
    weight: Float[Tensor, "V H"] | None,
    ref_states: Float[Tensor, "N _"],
    ref_weight: Float[Tensor, "V H"] | None,
    *,
    temperature: float,
    direction: str,
    ref_temperature: float | None = None,
) -> Float[Tensor, " N"]:
    """`divergences.full_kl` of the two softmaxes, chunked over tokens like `token_logprobs`. Without a weight, the
    states are logits."""
    vocabulary = states.shape[1] if weight is None else weight.shape[0]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    pieces = [states.new_zeros(0, dtype=torch.float32)]
    ref_weight = None if ref_weight is None else ref_weight.detach()
    for at in range(0, states.shape[0], size):
        ours, theirs = states[at : at + size], ref_states[at : at + size]
        arguments = (ours, weight, theirs, ref_weight, temperature, ref_temperature or temperature, direction)
        if torch.is_grad_enabled() and states.shape[0] > size:
            pieces.append(checkpoint(_full_kl, *arguments, use_reentrant=False))
        else:
            pieces.append(_full_kl(*arguments))
    return torch.cat(pieces)


def _full_kl(
    states: Tensor,
    weight: Tensor | None,
    ref_states: Tensor,
    ref_weight: Tensor | None,
    temperature: float,
    ref_temperature: float,
    direction: str,
) -> Tensor:
    logits = _logits(states, weight) / temperature
    return full_kl(logits, _logits(ref_states, ref_weight) / ref_temperature, direction=direction)


def _logits(states: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return states.float()
    with torch.autocast(states.device.type, enabled=False):  # a KL is a difference: logits rounded to bfloat16 drown it
        wide = torch.promote_types(states.dtype, torch.float32)
        return nn.functional.linear(states.to(wide), weight.to(wide))


def _spread(values: Float[Tensor, " M"], places: Int[Tensor, " M"], shape: torch.Size) -> Float[Tensor, "B R"]:
    """The response tokens' numbers where they belong, 0 elsewhere."""
    return values.new_zeros(shape.numel()).index_copy(0, places, values).view(shape)
