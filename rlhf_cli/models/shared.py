"""A critic that is only a head on the actor's trunk: less memory and one forward pass, but two losses that pull at
the same weights."""

from pathlib import Path
from typing import Any

from torch import nn


class SharedCritic(nn.Module):
    """`.score` maps the actor's last hidden states to values; it starts at 0."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = [actor]  # in a list: its weights are not this module's
        parameter = next(actor.parameters())
        self.score = nn.Linear(actor.config.hidden_size, 1, device=parameter.device, dtype=parameter.dtype)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    @property
    def base_model(self) -> Any:
        return self._actor[0].get_decoder()

    def save_pretrained(self, folder: str | Path) -> None:
        """The head alone: the trunk is saved with the actor."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        tensors = {f"score.{name}": value.detach().cpu() for name, value in self.score.state_dict().items()}
        save_file(tensors, str(Path(folder) / "model.safetensors"))

    def gradient_checkpointing_enable(self) -> None:
        """The actor's trunk has its own switch."""

    def activation_checkpointing_enable(self) -> None:
        """As above, by its newer name."""
