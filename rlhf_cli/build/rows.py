"""optim.micro_batch_size=auto: how many rows a pass has."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlhf_cli.config.schema import Config
from rlhf_cli.engine.budget import GB, Shape, Work, rows_within
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.memory import free_bytes

UNKNOWN = 8
"""Rows of a pass of a model whose sizes are not read from its config."""
MOST = {"cuda": 64, "cpu": 32}
"""More are no faster: a GPU is busy, and a CPU's cache is full."""


def rows_of_a_pass(
    config: Config,
    actor: Any,
    critic: Any,
    prompts: Sequence[Sequence[int]],
    where: Compute,
    notify: Callable[[str], None],
) -> int:
    """The config's number; of `auto` what memory holds, once the models are loaded, of a minibatch's rows. `prompts`:
    token ids of all that may be asked."""
    asked = config.optim.micro_batch_size
    if asked != "auto":
        return asked
    minibatch = -(-config.rollout.batch_size // config.algo.minibatches)
    most = min(minibatch, MOST.get(where.device.type, MOST["cpu"]))
    try:
        shape = Shape.of(actor.config)
    except AttributeError:
        notify(f"optim.micro_batch_size=auto: sizes of {actor.config.model_type} are not known, {UNKNOWN} rows a pass")
        return min(most, UNKNOWN)
    work = Work(
        rows=most,
        decoded=min(config.rollout.micro_batch_size, config.rollout.batch_size),
        prompt=max(map(len, prompts), default=0),
        response=config.rollout.max_response_length,
        checkpointing=config.optim.gradient_checkpointing,
        half=where.dtype == torch.bfloat16,
    )
    free, own = free_bytes(where.device), critic is not None and config.critic.name != "shared"
    kind = "own" if own else "none" if critic is None else "shared"
    rows = rows_within(
        free,
        shape,
        critic=kind,
        work=work,
        rank=config.actor.rank,
        captured=config.rollout.cuda_graphs,
        moments=config.optim.moments(on_gpu=where.device.type == "cuda"),
    )
    notify(f"optim.micro_batch_size=auto: {rows} rows a pass ({free / GB:.1f} GB free)")
    return rows
