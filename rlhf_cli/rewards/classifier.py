"""A sentiment classifier as a reward model: it has its own tokenizer and sees text."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Sentiment
from rlhf_cli.engine.load import class_index, load_classifier, load_tokenizer


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
        return outputs(self, self._encode(texts)).softmax(-1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, with special tokens, cut at the limit."""
        ids: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        long = [i for i, row in enumerate(ids) if len(row) > self.limit]
        self.truncated += len(long)
        for i in long:
            ids[i] = self.tokenizer(texts[i], truncation=True, max_length=self.limit)["input_ids"]
        return ids

    def score(self, texts: list[str], target: str) -> Float[Tensor, " N"]:
        """P(target)."""
        return self.probabilities(texts)[:, class_index(self.model, target)]

    def labels(self, texts: list[str]) -> list[Sentiment]:
        """The likeliest of negative, neutral, positive."""
        columns = [class_index(self.model, name) for name in SENTIMENTS]
        best = self.probabilities(texts)[:, columns].argmax(1)
        return [SENTIMENTS[int(i)] for i in best]


def outputs(judge: Any, ids: list[list[int]]) -> Float[Tensor, "N C"]:
    """What a model with a tokenizer and a batch size says of tokenised texts, float32 on the CPU, in their order.

    Equal texts are read once: in another batch the last digits would differ.
    """
    places = {row: at for at, row in enumerate(dict.fromkeys(map(tuple, ids)))}
    distinct = [list(row) for row in places]
    result = torch.zeros(len(distinct), judge.model.config.num_labels)
    for chosen in batches([len(row) for row in distinct], judge.batch_size):
        batch = judge.tokenizer.pad({"input_ids": [distinct[i] for i in chosen]}, return_tensors="pt").to(judge.device)
        logits = judge.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        result[chosen] = logits.float().cpu()
    return result[[places[tuple(row)] for row in ids]]


PADDING = 256
"""Positions that may be padding whatever its share: one more forward pass costs more."""


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Which go together: those of like length, at most `size`, with a quarter of their positions padding at most."""
    found: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        count, real = len(found[-1]) + 1 if found else 1, real + lengths[i]
        padding = count * lengths[i] - real
        if not found or count > size or padding > max(PADDING, count * lengths[i] // 4):
            found.append([])
            real = lengths[i]
        found[-1].append(i)
    return found
