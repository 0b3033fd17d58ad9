"""A batch of rollouts, read again by the policy, the reference and the critic."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.engine import gate
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.casts import forget_casts
from rlhf_cli.engine.finite import check_all_finite
from rlhf_cli.engine.read import keepable, read, response_logprobs, response_values
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.rollout import Experience, Rollout
from rlhf_cli.training.clock import phase
from rlhf_cli.training.policy import Critic, Policy, models

JUDGED = Algorithm(kl="none")
"""For evaluation: log-probs and entropies, no KL penalty."""


@phase("forward")
def evaluate(
    rollout: Rollout, policy: Policy, reference: Any, critic: Critic | None, algo: Algorithm = JUDGED
) -> Experience:
    """Old and reference log-probs, and values where there is a critic; advantages are still to be estimated.

    `policy.micro_batch_size` rows at a time, fewer where memory runs out. Where the log-probs of sampling are the old
    ones and nothing else is needed, the policy's forward pass is skipped. Raises NonFinite where a model's numbers are
    not finite.
    """
    learned = models(policy, critic, reference)
    # what is split learns on the plain way: its old log-probs must come from the same forward pass
    with gate.plainly(*filter(distributed.is_split, learned)), distributed.put_together(*learned):
        batch = policy.fit("reading", partial(_evaluate, rollout, policy, reference, critic, algo))
    numbers = {"a policy's log-prob is": batch.old_logprobs, "a reference's log-prob is": batch.ref_logprobs}
    if batch.values is not None:
        numbers["a value is"] = batch.values
    check_all_finite(numbers, rollout.mask, batch=batch)
    return batch


@dataclass
class _Columns:
    """Results of the micro-batches, a list per column."""

    old: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)
    full_kl: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def _evaluate(
    rollout: Rollout, policy: Policy, reference: Any, critic: Critic | None, algo: Algorithm, rows: int
) -> Experience:
    keeps = _keeps_graph(policy, critic, rollout)
    mine = rollout.select(distributed.share(len(rollout)))
    order = mine.cheapest_order()
    back = order.argsort().to(rollout.device, non_blocking=True)
    mine, columns = mine.select(order), _Columns()
    for some in mine.pieces(rows):
        with policy.compute.autocast():
            _read(mine.select(some).trimmed(), policy, reference, critic, algo, columns, keeps=keeps)
    forget_casts()  # the critic's are not needed before the policy has learned
    width = rollout.responses.shape[1]

    def whole(pieces: list[Tensor]) -> Tensor | None:
        return distributed.rows(_filled(pieces, width)[back]).detach() if pieces else None

    with torch.set_grad_enabled(keeps):
        live = _filled(columns.values, width)[back] if keeps else None
    old, ref = whole(columns.old), whole(columns.ref)
    assert old is not None
    assert ref is not None
    return Experience(
        rollout,
        old_logprobs=old,
        ref_logprobs=ref,
        values=whole(columns.values),
        read_logprobs=whole(columns.read),
        entropies=whole(columns.entropies),
        full_kl=whole(columns.full_kl),
        live_values=live,
    )


def _read(
    micro: Rollout,
    policy: Policy,
    reference: Any,
    critic: Critic | None,
    algo: Algorithm,
    columns: _Columns,
    *,
    keeps: bool,
) -> None:
    """One micro-batch. `keeps`: the critic's values keep their autograd graph."""
    temperature, direction = policy.generation.temperature, algo.full_kl("reward")
    head = critic.head_on_policy if critic else None
    columns.ref.append(response_logprobs(reference, micro, temperature=temperature)[0])
    if critic and head is None:
        with torch.set_grad_enabled(keeps):
            columns.values.append(response_values(critic.model, micro))
    if not (algo.recompute or direction or head is not None):
        columns.old.append(micro.logprobs)
        return
    against = {"reference": reference, "direction": direction} if direction else {}
    reading = read(policy.model, micro, temperature=temperature, value_head=head, **against)
    columns.read.append(reading.logprobs)
    columns.old.append(reading.logprobs if algo.recompute else micro.logprobs)
    columns.entropies.append(reading.entropies)
    if reading.values is not None:
        columns.values.append(reading.values)
    if reading.full_kl is not None:
        columns.full_kl.append(reading.full_kl)


def _keeps_graph(policy: Policy, critic: Critic | None, rollout: Rollout) -> bool:
    """Whether the critic's forward pass is also that of its first update: it learns from the whole batch at once, in
    this process, and its activations fit."""
    if critic is None or critic.optimizer is None or not critic.one_minibatch:
        return False
    alone = distributed.world() == 1 and not distributed.is_split(critic.model)
    return alone and not policy.memory.fits and keepable(critic.model, rollout)


def _filled(pieces: list[Tensor], width: int) -> Float[Tensor, "b R"]:
    """The micro-batches' rows, concatenated and padded with 0 to one width."""
    return torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces])
