"""LoRA (Hu et al. 2021): W + (α/r) B A, of which only A and B learn.

The model itself stays plain and frozen; whoever asks for its weights gets the sums. So the fast way, its samples and
its gradients need no second version, and the reference is the same model asked without its adapters. The price is one
set of summed matrices while a pass runs; what is saved is everything an optimizer keeps for them. Files are as peft
writes and reads them. Left out: dropout of a layer's input, which a sum has not.
"""

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.config.errors import UserError

ADAPTERS = "rlhf_adapters"
"""Under which a model has them, outside torch's own lists: its parameters' names stay as they were."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


class Adapters(nn.Module):
    """Of the named linear layers; `down` (A) [r, in] starts random, `up` (B) [out, r] at 0."""

    def __init__(self, model: Any, names: list[str], *, rank: int, alpha: float, targets: Any, base: str) -> None:
        super().__init__()
        self.rank, self.alpha, self.targets, self.base, self.names = rank, alpha, targets, base, names
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in names:
            weight = model.get_submodule(name).weight
            down = torch.empty(rank, weight.shape[1], device=weight.device)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as peft and the paper's code have it
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device)))

    def added(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with what is learned added: new tensors, through which gradients reach A and B."""
        sums = {
            f"{name}.weight": torch.addmm(weights[f"{name}.weight"], up, down, alpha=self.alpha / self.rank)
            for name, down, up in zip(self.names, self.down, self.up, strict=True)
        }
        return weights | sums


def adapters_of(model: Any) -> Adapters | None:
    return model.__dict__.get(ADAPTERS)


def attach(model: Any, *, rank: int, alpha: float, targets: str | list[str], base: str) -> Adapters:
    """Freeze the model and give it adapters. `targets`: all-linear, or the ends of layers' names; `base`: the folder or
    hub id that it was loaded from. Raises UserError where no layer matches."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head]
    wanted = targeted(linear, targets, key="actor")
    model.requires_grad_(False)
    made = Adapters(model, wanted, rank=rank, alpha=alpha, targets=targets, base=base)
    model.__dict__[ADAPTERS] = made
    return made


def targeted(linear: list[str], targets: str | list[str], *, key: str) -> list[str]:
    """Of the names of linear layers those that `<key>.lora.targets` means. Raises UserError where it means none."""
    wanted = linear if targets == "all-linear" else [n for n in linear if n.rpartition(".")[2] in targets]
    if not wanted:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "no linear layers"
        raise UserError(f"{key}.lora.targets={targets}: no linear layer of the model is called so; it has {known}")
    return wanted


def without_adapters(model: Any) -> Any:
    """The same weights, asked without the adapters."""
    plain = copy.copy(model)
    plain.__dict__ = {key: value for key, value in model.__dict__.items() if key != ADAPTERS}
    return plain


def learned(model: Any) -> list[nn.Parameter]:
    """What an optimizer is to move."""
    adapters = adapters_of(model)
    return [*model.parameters()] if adapters is None else [*adapters.parameters()]


def learned_by_name(model: Any) -> list[tuple[str, nn.Parameter]]:
    """The same with names; an adapter's is its layer's, with lora_A (down to the rank) or lora_B as peft has it."""
    adapters = adapters_of(model)
    if adapters is None:
        return [*model.named_parameters()]
    sides = (("lora_A", adapters.down), ("lora_B", adapters.up))
    return [(f"{layer}.{side}", p) for side, all_of in sides for layer, p in zip(adapters.names, all_of, strict=True)]


def summed_weights(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named weights with the model's adapters added, if it has any. Names may be a trunk's, without the model's own
    prefix."""
    adapters = adapters_of(model)
    return weights if adapters is None else adapters.added(weights)


def save(model: Any, folder: Path) -> None:
    """The adapters, as peft saves them."""
    from safetensors.torch import save_file

    adapters = adapters_of(model)
    assert adapters is not None
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, down, up in zip(adapters.names, adapters.down, adapters.up, strict=True):
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    named = adapters.targets if adapters.targets == "all-linear" else sorted(adapters.targets)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": adapters.base, "r": adapters.rank,
        "lora_alpha": adapters.alpha, "lora_dropout": 0.0, "target_modules": named, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "use_rslora": False,
        "use_dora": False,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def saved_config(folder: str) -> dict[str, Any] | None:
    """What a folder says of the adapters in it; None where it holds none."""
    file = Path(folder).expanduser() / CONFIG
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load(model: Any, folder: str) -> None:
    """Attach the adapters of a folder of peft's. Raises UserError for kinds that a sum of weights is not."""
    from safetensors.torch import load_file

    config = saved_config(folder)
    assert config is not None
    strange = [
        key for key in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern") if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or strange:
        raise UserError(f"{folder}: rlhf reads plain LoRA adapters; these have {', '.join(strange) or 'another kind'}")
    tensors = load_file(Path(folder).expanduser() / WEIGHTS)
    names = _names(tensors)
    made = attach(
        model, rank=config["r"], alpha=float(config["lora_alpha"]), targets=config["target_modules"],
        base=config["base_model_name_or_path"],
    )  # fmt: skip
    if missing := sorted(set(made.names) ^ set(names)):
        raise UserError(f"{folder}: its adapters are not those of the model's layers ({missing[0]})")
    with torch.no_grad():
        for name, down, up in zip(made.names, made.down, made.up, strict=True):
            down.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"])
            up.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"])


def _names(tensors: Iterable[str]) -> list[str]:
    end = ".lora_A.weight"
    return [name.removeprefix(PREFIX).removesuffix(end) for name in tensors if name.endswith(end)]


@torch.no_grad()
def merged_state(model: Any) -> dict[str, Tensor]:
    """The state_dict of the model with the adapters in its weights."""
    return summed_weights(model, dict(model.state_dict()))
