"""A sentiment classifier as a reward model: it has its own tokenizer and sees text."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Sentiment
from rlhf_cli.models.load import class_index, load_classifier, load_tokenizer


class Classifier:
    """P(class | text). Texts are batched by length; `truncated` counts those that were too long."""

    def __init__(self, path: str | Path, *, device: torch.device, batch_size: int, dtype: torch.dtype) -> None:
        self.model: Any = load_classifier(str(path), device=device, dtype=dtype)
        self.tokenizer: Any = load_tokenizer(str(path))
        self.device, self.batch_size = device, batch_size
        config = self.model.config
        if config.problem_type == "multi_label_classification" or config.num_labels < 2:
            raise UserError(
                f"{path} has a head of {config.num_labels} outputs ({config.problem_type}): P(negative) needs classes "
                "of which exactly one is true of a text, not a multi-label head; for one output: reward=learned"
            )
        offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        self.limit = min(config.max_position_embeddings - offset, self.tokenizer.model_max_length)
        self.truncated = 0

    @torch.inference_mode()
    def probabilities(self, texts: list[str]) -> Float[Tensor, "N C"]:
        """Softmax over the classes, float32 on the CPU, in the order of the texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = torch.zeros(len(texts), self.model.config.num_labels)
        for at in range(0, len(order), self.batch_size):
            chosen = order[at : at + self.batch_size]
            ids = self.tokenizer([texts[i] for i in chosen], add_special_tokens=True)["input_ids"]
            self.truncated += sum(len(row) > self.limit for row in ids)
            batch = self.tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=self.limit,
                return_tensors="pt",
            )
            logits = self.model(
                input_ids=batch["input_ids"].to(self.device),
                attention_mask=batch["attention_mask"].to(self.device),
            ).logits
            result[chosen] = logits.float().softmax(-1).cpu()
        return result

    def score(self, texts: list[str], target: str) -> Float[Tensor, " N"]:
        """P(target)."""
        return self.probabilities(texts)[:, class_index(self.model, target)]

    def labels(self, texts: list[str]) -> list[Sentiment]:
        """The likeliest of negative, neutral, positive."""
        columns = [class_index(self.model, name) for name in SENTIMENTS]
        best = self.probabilities(texts)[:, columns].argmax(1)
        return [SENTIMENTS[int(i)] for i in best]
