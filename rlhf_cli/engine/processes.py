"""One run on many processes: `torchrun -m rlhf_cli train …`, plain torch.distributed and nothing else.

Every process holds the whole batch as a record, and samples, scores, reads and differentiates its own rows of it. What
is summed over rows is summed over processes; what is decided is decided by the first. Random numbers hang on the
rollout's index, so the tokens are those of one process. With one process everything here does nothing.

With `shard=true` the decoder layers' weights, gradients and optimizer states are split over the processes (FSDP2); the
embedding, the last norm and the head stay whole, since losses use the head's weight by itself. To sample, the layers
are put together, because processes decode for different lengths; to learn, one layer at a time is.

Left out: pipeline and tensor parallelism. The models of these studies fit one GPU, or some with `shard=true`.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.streams import processes_started

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
    if processes_started() == 1:
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


def sums(values: Iterable[float | int]) -> list[float]:
    """The sums over processes, in float64."""
    return summed(torch.tensor(list(values), dtype=torch.float64)).tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Each process has the gradient of its rows' part of the loss: their sum is the whole batch's."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):  # FSDP summed those already
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, split or whole."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    split = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = torch.nn.utils.get_total_norm([g for g in gradients if not isinstance(g, DTensor)])
    if not split:
        return whole
    return torch.sqrt(whole.square() + summed(torch.nn.utils.get_total_norm(split).square()))


def clip_gradients(parameters: list[Any], limit: float, norm: Tensor) -> None:
    """Scale all gradients so that their norm is `limit` at most."""
    if not any(isinstance(p, DTensor) for p in parameters):
        return torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(scale)
    return None


def whole_weights(model: Any) -> dict[str, Any]:
    """What `save_pretrained` needs to save a split model: {"state_dict": …}; nothing for others. Everyone must ask."""
    return {"state_dict": whole(model.state_dict())} if is_split(model) else {}


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a split tensor; a whole one is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """`value`, a tree of dictionaries, lists and tensors, with every split tensor put together. Everyone must ask."""
    match value:
        case DTensor():
            return value.full_tensor()
        case dict():
            return {key: whole(item) for key, item in value.items()}
        case list():
            return [whole(item) for item in value]
    return value


def split_like(values: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """An optimizer's whole tensors of a parameter, split as it is."""
    if not isinstance(parameter, DTensor):
        return values
    return {
        name: distribute_tensor(v, parameter.device_mesh, parameter.placements)
        if isinstance(v, Tensor) and v.shape == parameter.shape
        else v
        for name, v in values.items()
    }


def shard(model: Any, device: torch.device) -> Any:
    """Split the decoder layers of a model over the processes, in place; with one process there is nothing to split."""
    if world() == 1 or model is None:
        return model
    mesh = init_device_mesh(device.type, (world(),))
    # nobody adds in place to what a layer gives, which is all that the warning is about
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # a sum, not a mean: every process differentiates its rows' part of one loss
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return model


def layers(model: Any) -> Any:
    """The model's decoder layers: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def is_split(model: Any) -> bool:
    return model is not None and any(isinstance(p, DTensor) for p in model.parameters())


@contextmanager
def put_together(*models: Any) -> Iterator[None]:
    """Inside, the layers of these models are whole on every process."""
    split = [layer for model in models if is_split(model) for layer in layers(model)]
    for layer in split:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in split:
            layer.set_reshard_after_forward(True)
            layer.reshard()


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
