"""A sentiment classifier as a reward model: it has its own tokenizer and sees text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Sentiment
from rlhf_cli.engine.load import class_index, listed_labels, load_classifier, load_tokenizer
from rlhf_cli.engine.memory import Memory
from rlhf_cli.engine.padding import (
    nothing,
    padded_features,
    padded_outputs,
    position_limit,
    settle_padding,
    text_ids,
)


class Classifier:
    """P(class | text). Texts are batched by length; `truncated` counts those that were too long."""

    def __init__(self, path: str | Path, *, device: torch.device, batch_size: int, dtype: torch.dtype) -> None:
        self.model: Any = load_classifier(str(path), device=device, dtype=dtype)
        self.tokenizer: Any = load_tokenizer(str(path))
        self.device, self.batch_size = device, batch_size
        config = self.model.config
        if config.num_labels < 2:
            raise UserError(
                f"{path} has one output and no classes: a reward model is reward=learned reward.path={path}"
            )
        if config.problem_type in ("multi_label_classification", "regression"):
            raise UserError(
                f"{path} is no classifier of one class a text: its config.json says problem_type="
                f"{config.problem_type} for {config.num_labels} outputs ({listed_labels(self.model)}). P(negative) "
                "needs classes of which exactly one is true of a text, not a multi-label head; if exactly one is, "
                "write single_label_classification there"
            )
        settle_padding(self.model, self.tokenizer, name=str(path))
        self.limit = position_limit(self.model, self.tokenizer)
        self.truncated = 0

    @torch.inference_mode()
    def probabilities(self, texts: list[str]) -> Float[Tensor, "N C"]:
        """Softmax over the classes, float32 on the CPU, in the order of the texts."""
        return outputs(self, encode(self, texts)).softmax(-1)

    @torch.inference_mode()
    def score(self, texts: list[str], target: str, output: str = "probability") -> Float[Tensor, " N"]:
        """P(target), its log_probability, or its logit log P − log (1 − P), exact where P rounds to 0 or 1."""
        column = class_index(self.model, target)
        if output == "probability":
            return self.probabilities(texts)[:, column]
        told = outputs(self, encode(self, texts)).log_softmax(-1)
        others = [i for i in range(told.shape[1]) if i != column]
        return told[:, column] - (told[:, others].logsumexp(-1) if output == "logit" else 0.0)

    def labels(self, texts: list[str]) -> list[Sentiment]:
        """The likeliest of negative, neutral, positive."""
        columns = [class_index(self.model, name) for name in SENTIMENTS]
        best = self.probabilities(texts)[:, columns].argmax(1)
        return [SENTIMENTS[int(i)] for i in best]


def encode(judge: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text, with special tokens, one at least; those over the judge's limit are cut and counted."""
    ids: list[list[int]] = judge.tokenizer(texts)["input_ids"] if texts else []
    for i, row in enumerate(ids):
        if len(row) > judge.limit:
            judge.truncated += 1
            ids[i] = text_ids(judge.tokenizer, texts[i], judge.limit)
        elif not row:
            ids[i] = [nothing(judge.tokenizer)]
    return ids


def outputs(judge: Any, ids: list[list[int]]) -> Float[Tensor, "N C"]:
    """What a model with a tokenizer and a batch size says of tokenised texts, float32 on the CPU, in their order."""
    return _in_batches(judge, ids, padded_outputs)


@torch.inference_mode()
def features(judge: Any, texts: list[str]) -> Float[Tensor, "N H"]:
    """Its last hidden layer, the mean over each text's tokens, float32 on the CPU, in the order of the texts."""
    return _in_batches(judge, encode(judge, texts), padded_features)


def _in_batches(
    judge: Any, ids: list[list[int]], read: Callable[[Any, Any, list[list[int]]], Tensor]
) -> Float[Tensor, "N K"]:
    """Equal texts are read once: in another batch the last digits would differ."""
    if not ids:
        return torch.zeros(0, judge.model.config.num_labels)
    places = {row: at for at, row in enumerate(dict.fromkeys(map(tuple, ids)))}
    distinct = [list(row) for row in places]

    def told(size: int) -> Tensor:
        chosen = batches([len(row) for row in distinct], size)
        parts = [read(judge.model, judge.tokenizer, [distinct[i] for i in some]).float().cpu() for some in chosen]
        order = torch.tensor([i for some in chosen for i in some])
        return torch.cat(parts)[order.argsort()]

    return _memory.fit("scoring", judge.batch_size, told)[[places[tuple(row)] for row in ids]]


_memory = Memory()
"""How many texts at a time were found to fit, for all judges."""


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
