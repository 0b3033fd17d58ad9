"""LoRA (Hu et al. 2021) for models that are called as modules: classifiers and reward models while they are trained.

W + (α/r) B A stands in a linear layer's place by torch's parametrizations, W frozen; merged, the model is plain again.
An actor's adapters are another matter (`lora.py`): they stay apart in its checkpoints.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rlhf_cli.engine.lora import targeted


class LowRank(nn.Module):
    """`down` (A) [r, in] starts random and `up` (B) [out, r] at 0, so that nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_low_rank(model: Any, *, rank: int, alpha: float, targets: str | list[str], key: str) -> None:
    """Freeze the trunk of a transformers model and give its linear layers adapters; its head learns whole, since it is
    new. `targets`: all-linear, or the ends of layers' names. Raises UserError where none is called so; `key`: the
    config's section, for the message."""
    trunk = model.base_model
    linear = [name for name, module in trunk.named_modules() if type(module) is nn.Linear]
    wanted = targeted(linear, targets, key=key)
    trunk.requires_grad_(False)
    for module in map(trunk.get_submodule, wanted):
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, alpha))


def merge_low_rank(model: Any) -> None:
    """Make the sums the model's weights; nothing where it has no adapters."""
    for module in [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
