"""Sampling from the full softmax at a temperature: nothing of the model's generation_config is read."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.rl.randomness import uniforms
from rlhf_cli.rl.rollout import Prompts, Rollout


@torch.no_grad()
def sample(
    model: Any,
    prompts: Prompts,
    *,
    eos_ids: tuple[int, ...],
    pad_id: int,
    max_length: int,
    temperature: float,
    seed: int,
    step: int,
) -> Rollout:
    """One response a row, until an EOS token or `max_length`. Finished rows leave the decode batch."""
    device, count = prompts.ids.device, len(prompts)
    responses = torch.full((count, max_length), pad_id, device=device)
    logprobs = torch.zeros(count, max_length, device=device)
    lengths = torch.full((count,), max_length, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    eos = torch.tensor(eos_ids, device=device)
    from transformers import DynamicCache

    cache = DynamicCache()
    width = prompts.ids.shape[1]
    attention = torch.arange(width, device=device) >= width - prompts.lengths[:, None]
    positions = (attention.long().cumsum(1) - 1).clamp(min=0)
    tokens, rows = prompts.ids, torch.arange(count, device=device)
    head = model.get_output_embeddings()
    for at in range(max_length):
        output = model.get_decoder()(
            input_ids=tokens,
            attention_mask=attention.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = head(output.last_hidden_state[:, -1]).float() / temperature
        token, logprob = draw(logits, uniforms(seed, step, prompts.index[rows], at))
        responses[rows, at], logprobs[rows, at] = token, logprob
        done = torch.isin(token, eos)
        ended[rows[done]], lengths[rows[done]] = True, at + 1
        going = (~done).nonzero().squeeze(1)
        if not len(going):
            break
        positions, attention = (
            positions[:, -1:] + 1,
            torch.cat([attention, attention.new_ones(len(rows), 1)], 1),
        )
        if len(going) < len(rows):
            cache.batch_select_indices(going)
            rows, token, positions, attention = rows[going], token[going], positions[going], attention[going]
        tokens = token[:, None]
    return Rollout(
        prompts=prompts.ids,
        prompt_lengths=prompts.lengths,
        responses=responses,
        lengths=lengths,
        ended=ended,
        logprobs=logprobs,
        group=prompts.group,
    )


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Inverse-CDF sampling: the first token whose cumulated probability exceeds the uniform number.

    The CDF is cumulated in float64: in float32 its error at 152k tokens is as large as a rare token.
    """
    logprobs = logits.log_softmax(-1)
    cdf = logprobs.double().exp().cumsum(-1)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(1)
    token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
