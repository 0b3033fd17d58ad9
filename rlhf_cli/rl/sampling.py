"""Sampling from the full softmax at a temperature: nothing of the model's generation_config is read."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_cli.rl.decode import Decoder, decodes
from rlhf_cli.rl.packing import packs
from rlhf_cli.rl.randomness import uniforms
from rlhf_cli.rl.recorded import recorded, records
from rlhf_cli.rl.rollout import Prompts, Rollout
from rlhf_cli.rl.scratch import scratch


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
    cuda_graphs: bool = True,
) -> Rollout:
    """One response a row, until an EOS token or `max_length`; on a GPU by a recorded step, if `cuda_graphs`."""
    trunk, head = model.get_decoder(), model.get_output_embeddings()
    ends = torch.zeros(head.weight.shape[0], dtype=torch.bool, device=prompts.ids.device)
    ends.index_fill_(0, torch.tensor(eos_ids, device=ends.device), True)
    chances = uniforms(seed, step, prompts.index[:, None], torch.arange(max_length, device=ends.device))
    drawn = _play if cuda_graphs and records(trunk) else _grow
    responses, logprobs = drawn(model, prompts, chances, ends, temperature)
    over = ends[responses]
    ended = over.any(1)
    lengths = torch.where(ended, over.int().argmax(1) + 1, max_length)  # the first one ends it
    after = torch.arange(max_length, device=ends.device) >= lengths[:, None]
    return Rollout(
        prompts=prompts.ids,
        prompt_lengths=prompts.lengths,
        responses=responses.masked_fill_(after, pad_id),
        lengths=lengths,
        ended=ended,
        logprobs=logprobs.masked_fill_(after, 0),
        group=prompts.group,
    )


Drawn = tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]
"""Tokens and their log-probs; anything after the first end."""


def _play(
    model: Any, prompts: Prompts, chances: Float[Tensor, "B R"], ends: Bool[Tensor, " V"], temperature: float
) -> Drawn:
    """Token by token with a recorded step, on a GPU."""
    from rlhf_cli.rl.cache import RowCache

    trunk, (count, longest), width = model.get_decoder(), chances.shape, prompts.ids.shape[1]
    step = recorded(model, draw, rows=count, columns=width + longest, length=longest)
    first, owner = distinct_prompts(prompts)
    cache = RowCache(trunk.config.num_hidden_layers, owner, width)
    real = torch.arange(width, device=ends.device) >= width - prompts.lengths[:, None]
    states = prefill(trunk, cache, prompts.ids[first], real[first], padded=True)[owner]
    return step.rollout(
        model,
        cache,
        states,
        positions=prompts.lengths,
        real=real,
        uniforms=chances,
        ends=ends,
        temperature=temperature,
    )


def _grow(
    model: Any, prompts: Prompts, chances: Float[Tensor, "B R"], ends: Bool[Tensor, " V"], temperature: float
) -> Drawn:
    """Token by token; finished rows leave the batch."""
    from rlhf_cli.rl.cache import RowCache, survivors

    trunk, head, device = model.get_decoder(), model.get_output_embeddings(), ends.device
    (count, longest), width = chances.shape, prompts.ids.shape[1]
    responses = torch.zeros(count, longest, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, longest, device=device)
    first, owner = distinct_prompts(prompts)
    cache = RowCache(trunk.config.num_hidden_layers, owner, width + longest - 1)
    columns = torch.arange(width + longest, device=device)
    real = columns >= width - prompts.lengths[:, None]
    padded = bool((prompts.lengths < width).any())
    # the prompts, each once; then one token a row and a step
    states = prefill(trunk, cache, prompts.ids[first], real[first, :width], padded=padded)[owner]
    rows, going = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    decoder = Decoder(trunk, head.weight, cache) if decodes(trunk) else None
    for at in range(longest):
        logits = decoder.logits(states) if decoder else head(states).float()
        if temperature != 1:
            logits.div_(temperature)
        token, logprob = draw(logits, chances[rows, at])
        responses[rows, at], logprobs[rows, at] = token, logprob
        going &= ~ends[token]
        left = int(going.sum())
        if not left:
            break
        if (stay := some_more(going, left, decoder.unit if decoder else 1)) is not None:
            movers, holes, left = survivors(stay)
            cache.keep(movers, holes, left)
            for x in (rows, token, going, *([real] if padded else [])):
                x[holes] = x[movers]
            rows, token, real, going = rows[:left], token[:left], real[:left], going[:left]
        if at + 1 == longest:
            break
        seen, positions = real[:, : width + at + 1], prompts.lengths[rows] + at
        if decoder:
            states = decoder.step(token, positions, seen[:, None] if padded else None)
        else:
            mask = mask_for(trunk, seen, queries=1, padded=padded)
            states = forward(trunk, cache, token[:, None], mask, positions[:, None])
    return responses, logprobs


def some_more(going: Bool[Tensor, " B"], left: int, unit: int) -> Bool[Tensor, " B"] | None:
    """Those of the rows that stay in the batch: the `left` that go on and, to a multiple of `unit`, some that are done;
    None where that is all of them."""
    spare = -(-left // unit) * unit - left
    if left + spare >= len(going):
        return None
    return going | (~going & ((~going).cumsum(0) <= spare)) if spare else going


def prefill(
    trunk: Any, cache: Any, ids: Int[Tensor, "U P"], real: Bool[Tensor, "U P"], *, padded: bool
) -> Float[Tensor, "U H"]:
    """Fill the cache with prompts; their last hidden states."""
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    return forward(trunk, cache, ids, mask_for(trunk, real, queries=ids.shape[1], padded=padded), positions)


def forward(trunk: Any, cache: Any, ids: Int[Tensor, "B Q"], mask: Any, positions: Int[Tensor, "B Q"]) -> Tensor:
    """Last hidden states of the last of the tokens, through transformers: [B, H]."""
    from rlhf_cli.internals.transformers_private import cache_argument

    held = {cache_argument(trunk.__class__): cache}
    output = trunk(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **held)
    return output.last_hidden_state[:, -1]


def distinct_prompts(prompts: Prompts) -> tuple[Int[Tensor, " U"], Int[Tensor, " B"]]:
    """(the rows with a group's first prompt, which of those each row has): a group's prompt is read once."""
    _, owner = prompts.group.unique_consecutive(return_inverse=True)
    first = torch.full((int(owner[-1]) + 1,), len(prompts), device=owner.device)
    return first.scatter_reduce(0, owner, torch.arange(len(prompts), device=owner.device), "amin"), owner


def mask_for(trunk: Any, real: Bool[Tensor, "B T"], *, queries: int, padded: bool) -> Any:
    """The attention mask of the last `queries` tokens, in the form that costs least; padding is on the left."""
    if not packs(trunk):
        return real.long()
    if not padded:
        return {"full_attention": None}
    if queries == 1:
        return {"full_attention": real[:, None, None]}
    at = torch.arange(queries, device=real.device)
    # padding sees itself, because a softmax over nothing is not a number
    seen = (at[:, None] >= at) & (real[:, None] | (at[:, None] == at))
    return {"full_attention": seen[:, None]}


BLOCK = 128
"""Tokens whose probabilities are added up before any is looked at by itself."""


def draw(logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Inverse-CDF sampling: the first token whose cumulated probability exceeds the uniform number.

    In two levels, over blocks of tokens and within one: a single pass over the vocabulary. What is cumulated is
    float64: in float32 its error at 152k tokens is as large as a rare token.
    """
    count, vocabulary = logits.shape
    top = logits.amax(-1, keepdim=True)
    weights = torch.sub(logits, top, out=scratch("weights", logits)).exp_()
    if vocabulary % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % BLOCK))
    blocks = weights.view(count, -1, BLOCK)
    mass = blocks.sum(-1).double()
    cumulated = mass.cumsum(-1)
    total = cumulated[:, -1:]
    wanted = uniform[:, None] * total
    block = torch.searchsorted(cumulated, wanted, right=True).clamp(max=mass.shape[1] - 1)
    chosen = mass.gather(1, block)
    share = (wanted - (cumulated.gather(1, block) - chosen)) / chosen
    inside = blocks[torch.arange(count, device=logits.device), block.squeeze(1)].double().cumsum(-1)
    offset = torch.searchsorted(inside, share * inside[:, -1:], right=True).clamp(max=BLOCK - 1)
    token = (block * BLOCK + offset).clamp(max=vocabulary - 1)
    return token.squeeze(1), (logits.gather(1, token) - top - total.log()).squeeze(1).float()
