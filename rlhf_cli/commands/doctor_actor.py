"""rlhf doctor actor.path=…: which way a model takes, whether it can have critics, and what a step of it costs."""

import time
from collections.abc import Iterator
from typing import Any

from rlhf_cli.commands.doctor_findings import Finding, failed_step

ROWS, PROMPT, RESPONSE = 4, 8, 16
"""Of the rollout that is timed."""


def examine_actor(config: Any) -> Iterator[Finding]:
    """Load the typed actor and try on it what a training step does, at a small shape."""
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.engine.device import compute
    from rlhf_cli.engine.load import load_actor
    from rlhf_cli.engine.memory import out_of_memory

    try:
        where = compute(config.device, config.precision)
        actor = load_actor(config.actor.path, device=where.device)
    except UserError as error:
        yield Finding("actor", str(error), "fix", "give another actor.path=")
        return
    yield way(actor)
    try:
        yield from tried(actor, config, where)
    except Exception as error:
        if out_of_memory(error):
            yield Finding("actor: a step", "out of memory", "fix", "take a smaller model or another device=")
            return
        failed = failed_step(error, where)
        yield Finding("actor: a step", failed.seen, "fix", failed.fix)


def way(actor: Any) -> Finding:
    """The way that it takes and why, with what that costs."""
    from rlhf_cli.engine.dropout import learns_in_eval_mode
    from rlhf_cli.engine.gate import facts_of, way_of

    found = way_of(actor)
    seen = f"{number(sum(p.numel() for p in actor.parameters()))} parameters; {found}"
    if learns_in_eval_mode(actor):
        return Finding("actor", seen, "note", "its dropout cannot be switched off: it learns in eval mode")
    if found.decoder is not None:
        window = found.decoder.window
        note = f"; over {window} tokens, its window, the plain way" if window is not None else ""
        return Finding("actor", seen + note)
    facts = facts_of(actor)
    how = "with left padding" if facts.left_padding else "prompts of one length at a time"
    how += "" if facts.caches else ", without a cache"
    return Finding("actor", f"{seen}; sampled {how}", "note", "nothing: as exact as the fast way, only slower")


def tried(actor: Any, config: Any, where: Any) -> Iterator[Finding]:
    """What critics stand on and what a step takes, from one small rollout that is sampled and learned from."""
    import torch

    from rlhf_cli.engine.load import trunk_of
    from rlhf_cli.engine.read import response_values
    from rlhf_cli.engine.value_head import SharedCritic, ValueModel, head_size

    shared = SharedCritic(actor)
    timed(actor, shared, where, response=2)  # what is made once, is made here
    rollout, sampling, learning = timed(actor, shared, where, response=RESPONSE)
    trunk = trunk_of(actor)
    with where.autocast(), torch.no_grad():
        values = response_values(ValueModel(trunk, head_size(actor)), rollout)
    assert values.shape == rollout.responses.shape
    states = "the base model's" if trunk is not actor else "the whole model's"
    yield Finding("actor: critics", f"critic= and critic=shared work: a value head on {states} last hidden states")
    seconds = seconds_a_step(config, sampling, learning)
    shape = f"{config.rollout.batch_size} responses of up to {config.rollout.max_response_length} tokens"
    gigabytes = memory_of_weights(config, actor, where)
    yield Finding(
        "actor: a step",
        f"about {seconds:.2g} s on {where.device} for {shape}, as measured on {ROWS} of {RESPONSE}; {gigabytes}B of "
        "weights, gradients and AdamW, and activations on top",
    )


def timed(actor: Any, shared: Any, where: Any, *, response: int) -> tuple[Any, float, float]:
    """(a rollout, seconds to sample it, seconds to read it with values and to find gradients)"""
    import torch

    from rlhf_cli.engine.dropout import train_mode
    from rlhf_cli.engine.gradients import in_place
    from rlhf_cli.engine.read import read
    from rlhf_cli.engine.sample import logit_count, sample
    from rlhf_cli.rl.rollout import Prompts

    generator, many = torch.Generator().manual_seed(0), torch.arange(ROWS)
    ids = torch.randint(logit_count(actor), (ROWS, PROMPT), generator=generator)
    prompts = Prompts(ids, torch.full((ROWS,), PROMPT), many, many).to(where.device)
    begin = clock(where)
    with where.autocast():
        rollout = sample(
            actor, prompts, eos_ids=(0,), pad_id=0, max_length=response, temperature=1.0, seed=0, step=1,
            cuda_graphs=False,
        )  # fmt: skip
    middle = clock(where)
    train_mode(actor)
    with where.autocast(), in_place():
        reading = read(actor, rollout, temperature=1.0, value_head=shared.score)
        assert reading.values is not None
        (reading.logprobs.sum() + reading.values.sum()).backward()
    end = clock(where)
    actor.zero_grad(set_to_none=True)
    actor.eval()
    return rollout, middle - begin, end - middle


def clock(where: Any) -> float:
    import torch

    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
    return time.perf_counter()


def seconds_a_step(config: Any, sampling: float, learning: float) -> float:
    """From those of the small rollout: as many times as there are more tokens. Reading without gradients takes a third
    of learning; a critic with a trunk of its own reads and learns as the actor does."""
    rollout, algo = config.rollout, config.algo
    sampled = rollout.batch_size * rollout.max_response_length / (ROWS * RESPONSE)
    read = rollout.batch_size * (PROMPT + rollout.max_response_length) / (ROWS * (PROMPT + RESPONSE))
    critic = algo.needs_critic and config.critic.name != "shared"
    passes = (1 + critic) * (algo.epochs + 1 / 3) + 1 / 3
    return sampling * sampled + learning * read * passes


def memory_of_weights(config: Any, actor: Any, where: Any) -> str:
    """16 bytes a weight that learns (itself, its gradient, two moments), and the reference in its own dtype."""
    count = sum(p.numel() for p in actor.parameters())
    learning = 2 if config.algo.needs_critic and config.critic.name != "shared" else 1
    return number(count * (16 * learning + where.dtype.itemsize), " ")


def number(count: float, space: str = "") -> str:
    """1234567 as 1.2M: with at most three figures, in thousands (k), millions (M) or billions (G)."""
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{space}{unit}"
        count /= 1000
    return f"{count:.3g}{space}G"
