"""Log-probs, entropies and values of given responses: one forward pass, LM head on response tokens only."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_cli.rl.rollout import Rollout

CHUNK_ELEMENTS = 2**26
"""Tokens × vocabulary held at once: 64M float32 numbers, 256 MB."""


def response_states(trunk: nn.Module, rollout: Rollout) -> Float[Tensor, "B R H"]:
    """Hidden states from which each response token was predicted (positions P-1 … T-2)."""
    attention = rollout.attention
    positions = (attention.long().cumsum(1) - 1).clamp(min=0)
    output: Any = trunk(input_ids=rollout.ids, attention_mask=attention.long(), position_ids=positions, use_cache=False)
    start = rollout.prompts.shape[1] - 1
    return output.last_hidden_state[:, start : start + rollout.responses.shape[1]]


def response_logprobs(
    model: Any, rollout: Rollout, *, temperature: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probs of the response tokens and entropies of their distributions; 0 outside the response."""
    mask = rollout.mask
    states = response_states(model.get_decoder(), rollout)[mask]
    logprobs, entropies = token_logprobs(
        states, model.get_output_embeddings().weight, rollout.responses[mask], temperature=temperature
    )
    return _scatter(logprobs, mask), _scatter(entropies, mask)


def response_values(critic: Any, rollout: Rollout) -> Float[Tensor, "B R"]:
    """V(prompt and response up to before each token); 0 outside the response."""
    mask = rollout.mask
    states = response_states(critic.base_model, rollout)[mask]
    return _scatter(critic.score(states).squeeze(-1).float(), mask)


def token_logprobs(
    states: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log softmax(states @ weight.T / temperature)[labels] and the entropy, in float32.

    Chunked over tokens; under autograd each chunk is recomputed in the backward pass, so [N, V] is never held.
    """
    size = max(1, CHUNK_ELEMENTS // weight.shape[0])
    pieces = []
    for at in range(0, states.shape[0], size):
        arguments = (states[at : at + size], weight, labels[at : at + size], temperature)
        if torch.is_grad_enabled() and states.shape[0] > size:
            pieces.append(checkpoint(_logprobs, *arguments, use_reentrant=False))
        else:
            pieces.append(_logprobs(*arguments))
    if not pieces:
        return states.new_zeros(0, dtype=torch.float32), states.new_zeros(0, dtype=torch.float32)
    return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])


def _logprobs(states: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(states, weight).float() / temperature
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, labels[:, None]).squeeze(-1), entropy


def _scatter(values: Float[Tensor, " N"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
