"""A reward model learned from ranked responses: one number a text (InstructGPT, Ouyang et al. 2022, sec. 3.5)."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.engine.load import listed_labels, load_classifier, load_tokenizer
from rlhf_cli.engine.padding import padded_outputs, position_limit, settle_padding
from rlhf_cli.rewards.classifier import encode, outputs

SCALE_FILE = "reward_scale.json"


class LearnedReward:
    """r(text), minus its mean and over its standard deviation on held-out responses where the folder has them."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device,
        batch_size: int,
        dtype: torch.dtype,
        new_head: bool = False,
        normalize: bool = True,
    ) -> None:
        """`new_head`: start a reward model from a classifier's trunk. `normalize=False`: scores are raw."""
        self.model: Any = load_classifier(str(path), device=device, dtype=dtype, labels=1 if new_head else None)
        self.tokenizer: Any = load_tokenizer(str(path))
        self.device, self.batch_size, self.normalize = device, batch_size, normalize
        if self.model.config.num_labels != 1:
            raise UserError(
                f"reward.path={path}: a model with {self.model.config.num_labels} outputs "
                f"({listed_labels(self.model)}) is no learned reward model (make one: rlhf reward-train; for a "
                f"classifier: reward=roberta_large reward.path={path})"
            )
        settle_padding(self.model, self.tokenizer, name=str(path))
        self.tokenizer.truncation_side = "left"  # what is ranked stands at the end
        self.limit = position_limit(self.model, self.tokenizer)
        self.truncated = 0
        scale = Path(path) / SCALE_FILE
        values = (
            json.loads(scale.read_text(encoding="utf-8"))
            if scale.exists() and not new_head
            else {"mean": 0.0, "std": 1.0}
        )
        self.mean, self.std = float(values["mean"]), float(values["std"])

    def rewards(self, texts: list[str]) -> Float[Tensor, " N"]:
        """The raw outputs of one forward pass, with gradient where that is on."""
        return padded_outputs(self.model, self.tokenizer, encode(self, texts)).squeeze(-1).float()

    @torch.inference_mode()
    def raw(self, texts: list[str]) -> Float[Tensor, " N"]:
        """The model's outputs, on the CPU, in the order of the texts."""
        if not texts:
            return torch.zeros(0)
        return outputs(self, encode(self, texts)).squeeze(-1)

    def score(self, texts: list[str]) -> Float[Tensor, " N"]:
        """What `rlhf train` rewards with: normalised, if asked for."""
        return (self.raw(texts) - self.mean) / self.std if self.normalize else self.raw(texts)

    def save(self, folder: Path, *, mean: float, std: float) -> None:
        """A plain Hugging Face folder with its own tokenizer, and the scale beside it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / SCALE_FILE).write_text(json.dumps({"mean": mean, "std": std}) + "\n", encoding="utf-8")
