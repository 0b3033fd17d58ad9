"""Which way a model takes: checked once, at first use, on a handful of tokens.

The fast way must give the model's own log-probs, packed and from a left-padded KV cache, to 1e-4 in float32. What the
plain way may count on is checked in the same manner, because few models promise it: that later tokens change nothing,
that left padding changes nothing, that a KV cache continues exactly, that rows may leave it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.engine import plain
from rlhf_cli.engine.decoder import Decoder, describe, layer_weights, named_weights
from rlhf_cli.rl.rollout import Rollout

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Nats; in bfloat16 both ways round, each in its own places."""
LOW_TOLERANCE = 0.25
TOKENS = ((1, 3), (4, 3), (2, 3))
"""(prompt, response) lengths of the rows that are compared: ragged, and no longer than the shortest windows."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is sampled and read."""

    decoder: Decoder | None
    """Of the fast way; None: the plain one."""
    why: str
    """There is no fast way."""
    difference: float
    """The largest that the gate found between the fast way and the model's own forward; NaN where it compared none."""

    def __str__(self) -> str:
        if self.decoder is not None:
            return f"fast way (largest difference from the model's own forward: {self.difference:.1e} nats)"
        return f"plain way, through the model's own forward: {self.why}"


WAY, FACTS = "rlhf_way", "rlhf_plain_facts"
"""Attributes of a model under which the gate's findings are kept; copies of the model keep them too."""


def way_of(model: Any) -> Way:
    """The model's way, found at first use. `model`: a causal LM, or a trunk without a head."""
    found = model.__dict__.get(WAY)
    if found is None:
        found = _look(model)
        setattr(model, WAY, found)
    return found


def take_way(model: Any, way: Way | None) -> None:
    """Let the model take this way from now on; None: look again."""
    model.__dict__.pop(WAY, None)
    if way is not None:
        setattr(model, WAY, way)


PLAIN = Way(None, "asked for", float("nan"))


@contextmanager
def plainly(*models: Any) -> Iterator[None]:
    """Inside, these models and their trunks take the plain way."""
    both = [part for model in models for part in (model, model.base_model)]
    before = [part.__dict__.get(WAY) for part in both]
    for part in both:
        take_way(part, PLAIN)
    try:
        yield
    finally:
        for part, way in zip(both, before, strict=True):
            take_way(part, way)


def fast(model: Any, context: int) -> Decoder | None:
    """The description by which the fast way goes for so many tokens of context here, or None: the plain way.

    Weights that are split over processes are whole only inside the model's own layers, so these take the plain way.
    """
    decoder = way_of(model).decoder
    if decoder is None or (decoder.window is not None and context > decoder.window):
        return None
    first = model.get_parameter(f"{decoder.prefix}layers.0.self_attn.q_proj.weight")
    return decoder if type(first) is torch.nn.Parameter else None


def facts_of(model: Any) -> plain.Facts:
    """What the plain way may count on for this model, found at first use."""
    found = model.__dict__.get(FACTS)
    if found is None:
        found = look_plain(model)
        setattr(model, FACTS, found)
    return found


@torch.no_grad()
def _look(model: Any) -> Way:
    decoder = describe(model.config, named_weights(model))
    if isinstance(decoder, str):
        return Way(None, decoder, float("nan"))
    weights = layer_weights(named_weights(model), decoder)
    if weights[0].query[0].is_meta:
        return Way(decoder, "", float("nan"))
    with _settled(model):
        rollout = _tokens(model)
        expected = [_wide(x) for x in _alone(model, rollout)]
        difference = max(_difference(x, y) for x, y in zip(_fast(model, decoder, rollout), expected, strict=True))
    limit = TOLERANCE.get(next(model.parameters()).dtype, LOW_TOLERANCE)
    if difference <= limit:
        return Way(decoder, "", difference)
    if not math.isfinite(difference):
        return Way(None, "its log-probs are not finite: look at its weights", difference)
    return Way(None, f"the fast way differs by {difference:.2g} nats", difference)


class _settled:
    """Inside, a model is in eval mode, without autocast."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training
        self.autocast = torch.autocast(next(model.parameters()).device.type, enabled=False)

    def __enter__(self) -> None:
        self.model.eval()
        self.autocast.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.autocast.__exit__(*raised)
        self.model.train(self.training)


def _tokens(model: Any) -> Rollout:
    """A few random tokens, as a rollout."""
    device, count = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    prompts, responses = (torch.tensor(n) for n in zip(*TOKENS, strict=True))
    generator = torch.Generator().manual_seed(0)
    width, longest = int(prompts.max()), int(responses.max())
    ids = torch.randint(count, (len(TOKENS), width + longest), generator=generator)
    rollout = Rollout(
        prompts=ids[:, :width],
        prompt_lengths=prompts,
        responses=ids[:, width:],
        lengths=responses,
        ended=torch.ones(len(TOKENS), dtype=torch.bool),
        logprobs=torch.zeros(len(TOKENS), longest),
        group=torch.arange(len(TOKENS)),
    )
    return rollout.to(device)


def _alone(model: Any, rollout: Rollout) -> list[Tensor]:
    """What the model's own forward gives where each response token is predicted, of each row by itself."""
    found = []
    for i in range(len(rollout)):
        prompt, response = int(rollout.prompt_lengths[i]), int(rollout.lengths[i])
        ids = torch.cat([rollout.prompts[i, rollout.prompts.shape[1] - prompt :], rollout.responses[i, :response]])
        found.append(plain.outputs(model, ids[None])[0, prompt - 1 : prompt + response - 1])
    return found


def _fast(model: Any, decoder: Decoder, rollout: Rollout) -> list[Tensor]:
    """The same from the fast way: packed, and for each row's first two tokens from prompt and KV cache."""
    from rlhf_cli.engine.eager_decode import EagerDecoder
    from rlhf_cli.engine.forward import packed_states, prefill
    from rlhf_cli.engine.kv_cache import KVCache
    from rlhf_cli.engine.packing import pack

    head = model.get_output_embeddings() if decoder.prefix else None

    def told(states: Tensor) -> Tensor:
        if head is None:
            return states
        wide = torch.promote_types(states.dtype, head.weight.dtype)
        return states.to(wide) @ head.weight.to(wide).T * decoder.logit_scale

    packed = told(packed_states(model, decoder, pack(rollout))).split(rollout.lengths.tolist())
    count, width = rollout.prompts.shape
    cache = KVCache(decoder.layers, torch.arange(count, device=rollout.prompts.device), width + 1)
    lengths = rollout.prompt_lengths.to(rollout.device)
    real = torch.arange(width + 1, device=rollout.device) >= width - lengths[:, None]
    states = [prefill(model, decoder, cache, rollout.prompts, real[:, :width], padded=True)]
    if rollout.prompts.device.type == "cpu":
        weight = model.get_input_embeddings().weight if head is None else head.weight
        step = EagerDecoder(model, decoder, weight, cache).step
        states.append(step(rollout.responses[:, 0], lengths, real[:, None]))
    continued = torch.stack([told(x) for x in states], 1)
    return [torch.cat([rows, again]) for rows, again in zip(packed, continued, strict=True)]


def _wide(x: Tensor) -> Tensor:
    """float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest, in nats (of hidden states: in their own size); `found` may have the first rows a second time.

    Numbers far down in the tail are compared to a hundred thousandth of their own size.
    """
    again = expected[: len(found) - len(expected)]
    return compare(found, torch.cat([expected, again]))


def compare(found: Tensor, expected: Tensor) -> float:
    """The largest difference of log-probs, [*, V]; infinite where a number is not finite."""
    found, expected = _wide(found).log_softmax(-1), _wide(expected).log_softmax(-1)
    difference = float(((found - expected).abs() / (1 + 0.1 * expected.abs())).max())
    return difference if difference == difference else float("inf")


def look_plain(model: Any) -> plain.Facts:
    """Raises UserError where the model is no causal LM: where later tokens change what came before."""
    names = plain.argument_names(model)
    is_split = any(type(p) is not torch.nn.Parameter for p in model.parameters())
    if is_split or next(model.parameters()).is_meta:
        return plain.Facts(names)
    with torch.no_grad(), _settled(model):
        rollout = _tokens(model)
        limit = TOLERANCE.get(next(model.parameters()).dtype, LOW_TOLERANCE)
        alone = _alone(model, rollout)
        if not all(bool(x.isfinite().all()) for x in alone):
            return plain.Facts(names)  # NaN compares with nothing; the run will say where it is

        def holds(work: Callable[[], Tensor | list[Tensor]], expected: list[Tensor]) -> bool:
            try:
                return max(map(compare, work(), expected)) <= limit
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
                return False

        facts = plain.Facts(names)
        together = holds(lambda: plain.response_outputs(model, rollout, facts).split(rollout.lengths.tolist()), alone)
        if not together:
            facts = plain.Facts(names - {"logits_to_keep"})
            kept = holds(lambda: plain.response_outputs(model, rollout, facts).split(rollout.lengths.tolist()), alone)
            if not kept:
                facts = plain.Facts(facts.names, batches="equal")
                if not holds(lambda: plain.response_outputs(model, rollout, facts).split(3), alone):
                    raise UserError(not_causal(model))
        if not _is_causal(model, rollout, alone, limit):
            raise UserError(not_causal(model))
        if model.get_output_embeddings() is None:
            return facts
        return _cache_facts(model, rollout, alone, facts, holds)


def _is_causal(model: Any, rollout: Rollout, alone: list[Tensor], limit: float) -> bool:
    """Whether predictions stay when the last token is another."""
    other = rollout.responses.clone()
    other[:, -1] = (other[:, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    changed = _alone(model, replace(rollout, responses=other))
    return max(map(compare, changed, alone)) <= limit


def not_causal(model: Any) -> str:
    return (
        f"{model.config.model_type} is no causal language model: what it predicts changes with later tokens. "
        "Give a decoder-only model (GPT-2, Llama, Qwen, Gemma, Mamba, …) with actor.path= or critic.path="
    )


def _cache_facts(
    model: Any, rollout: Rollout, alone: list[Tensor], facts: plain.Facts, holds: Callable[..., bool]
) -> plain.Facts:
    """How the model may be sampled: with left padding, with rows that leave, with a cache at all."""
    prompts, lengths, given = rollout.prompts, rollout.prompt_lengths, rollout.responses

    def continued(facts: plain.Facts, rows: Tensor, leave: bool) -> list[Tensor]:
        """Predictions of the first three response tokens of these rows; with `leave` their order is turned round."""
        chosen = plain.PlainDecoder(model, facts, prompts[rows, :], lengths[rows.cpu()])
        found = [chosen.logits]
        order = torch.arange(len(rows), device=rows.device)
        for at in range(2):
            if leave and at == 1:
                order = order.flip(0)
                chosen.select(order)
            chosen.step(given[rows[order], at])
            found.append(chosen.logits[order.argsort()])
        return list(torch.stack(found, 1).unbind(0))

    every = torch.arange(len(rollout), device=prompts.device)
    same = torch.tensor([1, 1], device=prompts.device)
    for left in (True, False):
        rows = every if left else same
        for cached in (True, False) if not left else (True,):
            tried = replace(facts, left_padding=left, caches=cached, selects=True)
            expected = [alone[i] for i in rows.tolist()]
            if cached and holds(lambda t=tried, r=rows: continued(t, r, True), expected):
                return tried
            tried = replace(tried, selects=False)
            if holds(lambda t=tried, r=rows: continued(t, r, False), expected):
                return tried
    raise UserError(
        f"{model.config.model_type}: sampled one token at a time the model does not give what it gives to whole texts; "
        "it cannot be trained with rlhf"
    )
