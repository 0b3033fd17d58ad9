"""One run on many processes: `torchrun -m rlhf_cli train …`, plain torch.distributed and nothing else.

Every process holds the whole batch as a record, and samples, scores, reads and differentiates its own rows of it. What
is summed over rows is summed over processes; what is decided is decided by the first. Random numbers hang on the
rollout's index, so the tokens are those of one process. With one process everything here does nothing.

Left out: pipeline and tensor parallelism: the models of these studies fit one GPU.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from rlhf_cli.config.errors import UserError
from rlhf_cli.rl.finite import NonFinite

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long one waits for another that is silent but alive: the first may be building miniatures or downloading."""


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


@contextmanager
def together(device: str) -> Iterator[None]:
    """The processes that torchrun started, as one group. One that fails takes the others down: torchrun sees to it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    ended_well = False
    try:
        yield
        ended_well = True
    finally:
        if ended_well or not on_gpu:  # NCCL would wait for the others, who may never come
            dist.destroy_process_group()


def local_device() -> torch.device:
    """The GPU of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def share(count: int) -> slice:
    """This process's rows of `count`: consecutive, as equal as can be."""
    return slice(rank() * count // world(), (rank() + 1) * count // world())


def gather(mine: T) -> list[T]:
    """Everyone's, in order, for everyone. Tensors travel through the CPU: for records of a batch, not for weights."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    return found


def rows(mine: Tensor) -> Tensor:
    """The rows of all processes' shares."""
    if world() == 1:
        return mine
    return torch.cat(gather(mine.cpu())).to(mine.device)


def summed(values: Tensor) -> Tensor:
    """The sum over processes."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def sums(values: Iterable[float]) -> list[float]:
    """The sums over processes, in float64."""
    return summed(torch.tensor(list(values), dtype=torch.float64)).tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Each process has the gradient of its rows' part of the loss: their sum is the whole batch's."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def first(action: Callable[[], T]) -> T:
    """What the first process gets from `action`, for everyone; its UserError is everyone's."""
    if world() == 1:
        return action()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = action()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def first_then_the_rest(action: Callable[[], T]) -> T:
    """Everyone does it, the first one before the others: what it builds or downloads they find."""
    if world() == 1:
        return action()
    mine = action() if is_first() else None
    dist.barrier()
    return mine if mine is not None else action()


def all_or_none(action: Callable[[], T]) -> T:
    """What each process gets from `action`; where a number is not finite in one of them, NonFinite in all."""
    if world() == 1:
        return action()
    result: Any = None
    fault: tuple[str, list[int], dict[str, Any]] | None = None
    try:
        result = action()
    except NonFinite as error:
        fault = (error.what, error.rows, error.evidence)
    for found in gather(fault):
        if found is not None:
            raise NonFinite(found[0], found[1], **found[2])
    return result


def any_of(mine: str | None) -> str | None:
    """The first answer that is not None, of all processes."""
    return next((answer for answer in gather(mine) if answer is not None), None)
