"""Sampling from the full softmax at a temperature: nothing of the model's generation_config is read."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_cli.engine import gate, kv_cache, plain
from rlhf_cli.engine.cuda_graph_decode import captured_step
from rlhf_cli.engine.decoder import Decoder
from rlhf_cli.engine.eager_decode import EagerDecoder
from rlhf_cli.engine.forward import prefill
from rlhf_cli.engine.scratch import scratch
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
    cuda_graphs: bool = True,
) -> Rollout:
    """One response a row, until an EOS token or `max_length`; on a GPU by a captured step, if `cuda_graphs`."""
    vocabulary, width = logit_count(model), prompts.ids.shape[1]
    ends = torch.zeros(vocabulary, dtype=torch.bool, device=prompts.ids.device)
    ends.index_fill_(0, torch.tensor(eos_ids, device=ends.device), True)
    index = prompts.index[:, None].to(ends.device, non_blocking=True)
    chances = uniforms(seed, step, index, torch.arange(max_length, device=ends.device))
    decoder = gate.fast(model, width + max_length)
    if decoder is None:
        responses, logprobs = _plainly(model, prompts, chances, ends, temperature)
    else:
        drawn = _replay if cuda_graphs and captures(model) else _grow
        responses, logprobs = drawn(model, decoder, prompts, chances, ends, temperature / decoder.logit_scale)
    over = ends[responses]
    lengths = torch.where(over.any(1), over.int().argmax(1) + 1, max_length)  # the first one ends it
    after = torch.arange(max_length, device=ends.device) >= lengths[:, None]
    lengths, ended = torch.stack([lengths, over.any(1)]).cpu()  # the host waits once for a whole rollout
    return Rollout(
        prompts=prompts.ids,
        prompt_lengths=prompts.lengths,
        responses=responses.masked_fill_(after, pad_id),
        lengths=lengths,
        ended=ended.bool(),
        logprobs=logprobs.masked_fill_(after, 0),
        group=prompts.group,
    )


Drawn = tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]
"""Tokens and their log-probs; anything after the first end."""


def captures(model: Any) -> bool:
    """Whether decoding steps are captured as CUDA graphs here."""
    return model.get_input_embeddings().weight.device.type == "cuda"


def logit_count(model: Any) -> int:
    """The width of the model's logits."""
    return int(model.get_output_embeddings().weight.shape[0])


def _replay(
    model: Any,
    decoder: Decoder,
    prompts: Prompts,
    chances: Float[Tensor, "B R"],
    ends: Bool[Tensor, " V"],
    temperature: float,
) -> Drawn:
    """Token by token with a captured step, on a GPU."""
    (count, longest), width = chances.shape, prompts.ids.shape[1]
    step = captured_step(model, decoder, draw, rows=count, columns=width + longest, length=longest)
    step.begin(model, count)
    first, owner = distinct_prompts(prompts)
    cache = kv_cache.KVCache(decoder.layers, owner, width)
    lengths = prompts.lengths.to(ends.device, non_blocking=True)
    real = torch.arange(width, device=ends.device) >= width - lengths[:, None]
    asked = (prompts.ids[first], real[first])
    states = prefill(model, decoder, cache, *asked, padded=True, blocks=step.layers)[owner]
    return step.rollout(
        cache,
        states,
        positions=lengths,
        real=real,
        uniforms=chances,
        ends=ends,
        temperature=temperature,
    )


def _grow(
    model: Any,
    decoder: Decoder,
    prompts: Prompts,
    chances: Float[Tensor, "B R"],
    ends: Bool[Tensor, " V"],
    temperature: float,
) -> Drawn:
    """Token by token, operation by operation; finished rows leave the batch."""
    head, device = model.get_output_embeddings(), ends.device
    (count, longest), width = chances.shape, prompts.ids.shape[1]
    responses = torch.zeros(count, longest, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, longest, device=device)
    first, owner = distinct_prompts(prompts)
    cache = kv_cache.KVCache(decoder.layers, owner, width + longest - 1)
    columns, lengths = torch.arange(width + longest, device=device), prompts.lengths.to(device, non_blocking=True)
    real = columns >= width - lengths[:, None]
    padded = bool((prompts.lengths < width).any())
    # the prompts, each once; then one token a row and a step
    states = prefill(model, decoder, cache, prompts.ids[first], real[first, :width], padded=padded)[owner]
    rows, going = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    stepper = EagerDecoder(model, decoder, head.weight, cache)
    for at in range(longest):
        logits = stepper.logits(states)
        if temperature != 1:
            logits.div_(temperature)
        token, logprob = draw(logits, chances[rows, at])
        responses[rows, at], logprobs[rows, at] = token, logprob
        going &= ~ends[token]
        left = int(going.sum())
        if not left:
            break
        if (stay := some_more(going, left, stepper.unit)) is not None:
            movers, holes, left = kv_cache.survivors(stay)
            cache.keep(movers, holes, left)
            for x in (rows, token, going, *([real] if padded else [])):
                x[holes] = x[movers]
            rows, token, real, going = rows[:left], token[:left], real[:left], going[:left]
        if at + 1 == longest:
            break
        seen, positions = real[:, : width + at + 1], lengths[rows] + at
        states = stepper.step(token, positions, seen[:, None] if padded else None)
    return responses, logprobs


LEAVE = 0.75
"""Rows leave a public cache when no more than this share goes on: it is copied then."""


def _plainly(
    model: Any, prompts: Prompts, chances: Float[Tensor, "B R"], ends: Bool[Tensor, " V"], temperature: float
) -> Drawn:
    """Token by token through the model's own forward; prompts of one length at a time where padding is not exact."""
    facts = gate.facts_of(model)
    responses = torch.zeros(chances.shape, dtype=torch.long, device=ends.device)
    logprobs = torch.zeros(chances.shape, device=ends.device)
    lengths = [prompts.lengths] if facts.left_padding else list(prompts.lengths.unique())
    for wanted in lengths:
        rows = (prompts.lengths == wanted).nonzero().squeeze(1)
        there = rows.to(ends.device, non_blocking=True)
        _plain_batch(model, facts, prompts.select(rows), there, chances, ends, temperature, (responses, logprobs))
    return responses, logprobs


def _plain_batch(
    model: Any,
    facts: plain.Facts,
    prompts: Prompts,
    rows: Int[Tensor, " b"],
    chances: Float[Tensor, "B R"],
    ends: Bool[Tensor, " V"],
    temperature: float,
    drawn: Drawn,
) -> None:
    """Fill in the rows' responses and log-probs."""
    responses, logprobs = drawn
    leaves = facts.selects or not facts.caches
    decoder = plain.PlainDecoder(model, facts, prompts.ids, prompts.lengths)
    going = torch.ones(len(rows), dtype=torch.bool, device=ends.device)
    for at in range(chances.shape[1]):
        token, logprob = draw(decoder.logits / temperature, chances[rows, at])
        responses[rows, at] = torch.where(going, token, responses[rows, at])
        logprobs[rows, at] = torch.where(going, logprob, logprobs[rows, at])
        going &= ~ends[token]
        if not going.any() or at + 1 == chances.shape[1]:
            return
        if leaves and int(going.sum()) <= LEAVE * len(going):
            stay = going.nonzero().squeeze(1)
            decoder.select(stay)
            rows, token, going = rows[stay], token[stay], going[stay]
        decoder.step(token)


def some_more(going: Bool[Tensor, " B"], left: int, unit: int) -> Bool[Tensor, " B"] | None:
    """Those of the rows that stay in the batch: the `left` that go on and, to a multiple of `unit`, some that are done;
    None where that is all of them."""
    spare = -(-left // unit) * unit - left
    if left + spare >= len(going):
        return None
    return going | (~going & ((~going).cumsum(0) <= spare)) if spare else going


def distinct_prompts(prompts: Prompts) -> tuple[Int[Tensor, " U"], Int[Tensor, " B"]]:
    """(the rows with a group's first prompt, which of those each row has): a group's prompt is read once."""
    _, owner = prompts.group.unique_consecutive(return_inverse=True)
    first = torch.full((int(owner[-1]) + 1,), len(prompts))
    first = first.scatter_reduce(0, owner, torch.arange(len(prompts)), "amin")
    return first.to(prompts.ids.device, non_blocking=True), owner.to(prompts.ids.device, non_blocking=True)


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
