"""A minibatch in micro-batches: which rows go together, the forward pass with gradient, the policy's loss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.finite import check_finite
from rlhf_cli.engine.read import Reading, read
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.rollout import Experience
from rlhf_cli.training.metrics import UpdateStats
from rlhf_cli.training.policy import Policy


def micro_batches(batch: Experience, rows: int, *, lockstep: bool) -> Iterator[Experience]:
    """This process's share, `rows` at a time; without lockstep, more rows where they are shorter."""
    share = distributed.share(len(batch.rollout))
    if share.start == share.stop:
        return
    mine = batch.select(share)
    even = [slice(at, at + rows) for at in range(0, len(mine.rollout), rows)]
    for some in even if lockstep else mine.rollout.pieces(rows):
        yield mine.select(some)


@dataclass(frozen=True)
class Lockstep:
    """Whether the model is sharded: processes run its layers together, so none may abort or retry alone."""

    on: bool

    @staticmethod
    def of(policy: Policy) -> "Lockstep":
        return Lockstep(distributed.is_split(policy.model))

    def fit(self, policy: Policy, work: Callable[[int], UpdateStats]) -> UpdateStats:
        """Gradients that fit this process's memory; NonFinite for all where it is so for one."""
        if self.on:
            return work(policy.micro_batch_size)
        return distributed.all_or_none(lambda: policy.fit("learning", work))

    def check(self, what: str, loss: Tensor) -> None:
        """Raise NonFinite. In lockstep the gradient norm, which all processes see, shows it, and on a GPU too: a look
        at each micro-batch's loss would wait for it."""
        if not self.on and not loss.is_cuda:
            check_finite(what, loss.detach())


def read_live(
    policy: Policy, reference: Any, micro: Experience, algo: Algorithm, head: nn.Module | None = None
) -> Reading:
    """The policy's forward pass with gradient; the exact KL where it sits in the loss."""
    direction = algo.full_kl("loss")
    against = {"reference": reference, "direction": direction} if direction else {}
    with policy.compute.autocast():
        return read(policy.model, micro.rollout, temperature=policy.generation.temperature, value_head=head, **against)


def actor_loss(
    algo: Algorithm, micro: Experience, reading: Reading, total: float, *, first: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    if first and algo.recompute:
        micro = replace(micro, old_logprobs=reading.logprobs.detach())
    return algo.actor_loss(micro, reading.logprobs, reading.entropies, total=total, full_kl=reading.full_kl)
