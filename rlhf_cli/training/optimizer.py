"""A model's AdamW, its learning-rate schedule and its gradient clip, on one process or several."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.config.errors import RunFailed
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.casts import forget_casts
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.lora import learned, learned_by_name
from rlhf_cli.engine.memory import make_room, out_of_memory
from rlhf_cli.training.adamw8 import adamw_8bit


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear learning-rate warm-up, then constant, linear or cosine decay to 0 after the last of the `steps`."""

    steps: int
    warmup: int = 0
    kind: str = "constant"

    def scale(self, step: int) -> float:
        """The learning rate's factor at a step (from 1)."""
        if step <= self.warmup:
            return step / self.warmup
        done = (step - self.warmup - 1) / max(1, self.steps - self.warmup)
        match self.kind:
            case "linear":
                return 1 - done
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
            case _:
                return 1.0


class Optimizer:
    """`also`: parameters outside the model that learn with it, such as a shared critic's head, at `also_lr` or the
    model's own learning rate; `eight_bit`: AdamW's moments are kept in 8 bits."""

    def __init__(
        self,
        model: Any,
        *,
        lr: float,
        schedule: Schedule,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        also: Iterable[torch.nn.Parameter] = (),
        also_lr: float | None = None,
        eight_bit: bool = False,
    ) -> None:
        self.model, self.lr, self.schedule, self.max_grad_norm = model, lr, schedule, max_grad_norm
        own, also = learned(model), list(also)
        self.parameters = [*own, *also]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if also and also_lr is not None:
            groups = [{"params": own}, {"params": also, "lr": also_lr}]
        self.adamw: Any
        self.moments = 2 if eight_bit else 8  # bytes a weight
        if eight_bit:
            self.adamw = adamw_8bit(groups, lr=lr, weight_decay=weight_decay)
        else:
            # fused: one pass over each parameter, and no temporary copies of all of them; it takes no split ones
            fused = not distributed.is_split(model)
            self.adamw = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused, foreach=False)
        self.full = [group["lr"] for group in self.adamw.param_groups]

    def step(self, step: int) -> float:
        """Clip, check, update at this training step's learning rate; returns the gradient norm before the clip.

        Raises NonFinite, with no weight touched.
        """
        distributed.sum_gradients(self.parameters)
        norm = distributed.gradient_norm(self.parameters)
        told = float(norm)  # the one wait for the device
        if not math.isfinite(told):
            named = zip(self.names(), self.parameters, strict=True)
            bad = [name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFinite("the gradient is", parameters=bad)
        distributed.clip_gradients(self.parameters, self.max_grad_norm, norm)
        for group, full in zip(self.adamw.param_groups, self.full, strict=True):
            group["lr"] = full * self.schedule.scale(step)
        self._update()
        forget_casts()
        self.zero_grad()
        return told

    def names(self) -> list[str]:
        """Of the parameters that learn: weights or adapters of the model, and what learns with it."""
        known = {id(p): name for name, p in learned_by_name(self.model)}
        return [known.get(id(p), "value head") for p in self.parameters]

    def _update(self) -> None:
        """AdamW's own step. The first one makes room for two numbers a weight; where there is none, what can be made
        again is dropped, and it starts over: no weight changes before all of that room is there."""
        first = not self.adamw.state
        try:
            return self.adamw.step()
        except (RuntimeError, MemoryError) as error:
            if not (first and out_of_memory(error)):
                raise
        self.adamw.state.clear()
        forget_casts()
        make_room()
        try:
            self.adamw.step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            room = sum(self.moments * p.numel() for p in self.parameters if p.grad is not None) / 2**30
            raise RunFailed(
                f"out of memory in the first optimizer step: AdamW keeps two numbers a weight, {room:.1f} GB here. "
                "Take a smaller model, or train fewer weights (critic=shared; algo=grpo needs no critic)"
            ) from error

    def learning_rate(self, step: int) -> float:
        return self.lr * self.schedule.scale(step)

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Gathered from all processes."""
        return distributed.whole(self.adamw.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state_dict that was saved on any number of processes."""
        parts = {i: distributed.split_like(slots, self.parameters[i]) for i, slots in state["state"].items()}
        # `fused` and `foreach` are this process's, not the saved ones: AdamW's step counts are on the device they need
        kinds = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in self.adamw.param_groups]
        groups = [group | kind for group, kind in zip(state["param_groups"], kinds, strict=True)]
        self.adamw.load_state_dict({"state": parts, "param_groups": groups})
