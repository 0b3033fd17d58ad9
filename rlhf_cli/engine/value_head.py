"""Value heads: one linear layer on the hidden states that a language model's own head is given."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_cli.config.errors import UserError

FILE = "value_head.safetensors"
"""Of a critic's folder, beside its trunk as a plain Hugging Face folder."""


def value_head(size: int, like: Any) -> nn.Linear:
    """A head that starts at 0, on the device and in the dtype of the model `like`."""
    parameter = next(like.parameters())
    head = nn.Linear(size, 1, device=parameter.device, dtype=parameter.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class ValueModel(nn.Module):
    """A critic with a trunk of its own: `.score` maps the trunk's last hidden states to values."""

    def __init__(self, trunk: Any, size: int) -> None:
        super().__init__()
        self.base_model = trunk
        self.score = value_head(size, trunk)

    @property
    def config(self) -> Any:
        return self.base_model.config

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Any] | None = None) -> None:
        """The trunk as a plain folder, and the head beside it. `state_dict`: of this module, where it is split."""
        whole = self.state_dict() if state_dict is None else state_dict
        trunk = {name.removeprefix("base_model."): w for name, w in whole.items() if name.startswith("base_model.")}
        self.base_model.save_pretrained(folder, **({} if state_dict is None else {"state_dict": trunk}))
        _save_head(whole, folder)

    def activation_checkpointing_enable(self) -> None:
        checkpoint_activations(self.base_model)


class SharedCritic(nn.Module):
    """A critic that is only a head on the actor's trunk: less memory and one forward pass, but two losses that pull at
    the same weights."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = [actor]  # in a list: its weights are not this module's
        self.score = value_head(head_size(actor), actor)

    @property
    def base_model(self) -> Any:
        return self._actor[0].base_model

    def save_pretrained(self, folder: str | Path) -> None:
        """The head alone: the trunk is saved with the actor."""
        _save_head(self.state_dict(), folder)

    def activation_checkpointing_enable(self) -> None:
        """The actor's trunk has its own switch."""


def head_size(model: Any) -> int:
    """Numbers that the model's LM head is given for a token."""
    return int(model.get_output_embeddings().weight.shape[1])


def checkpoint_activations(model: Any) -> None:
    """The model's public switch for gradient checkpointing, by its newer name where it has that."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def _save_head(weights: dict[str, Any], folder: str | Path) -> None:
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    head = {name: w.detach().cpu().contiguous() for name, w in weights.items() if name.startswith("score.")}
    save_file(head, str(Path(folder) / FILE))


def saved_head(folder: str | Path) -> Path | None:
    """The file with a value head in a critic's folder: ours, or that of a TokenClassification model of one label."""
    from safetensors import safe_open

    folder = Path(folder).expanduser()
    if (folder / FILE).is_file():
        return folder / FILE
    index, found = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found = folder / names.get("score.bias", "none")
    if not found.is_file():
        return None
    with safe_open(str(found), "pt") as file:
        return found if {"score.weight", "score.bias"} <= set(file.keys()) else None


def restore_head(critic: Any, folder: str | Path) -> None:
    """Give a critic the value head that is saved in a folder. Raises UserError where there is none."""
    import torch
    from safetensors import safe_open

    if (path := saved_head(folder)) is None:
        raise UserError(
            f"{folder} holds no value head ({FILE}): it is no critic of a checkpoint, or only a part of one"
        )
    with safe_open(str(path), "pt") as file, torch.no_grad():
        critic.score.weight.copy_(file.get_tensor("score.weight"))
        critic.score.bias.copy_(file.get_tensor("score.bias"))
