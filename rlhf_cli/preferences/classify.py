"""Training a classifier of texts, and what it is worth on held-out ones."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.engine.padding import padded_outputs, text_ids

Descend = Callable[[Any, Callable[[], Tensor]], None]
"""(model, loss): calls the loss as often as there are steps, and takes each gradient's step."""


def fit(
    model: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, str]],
    classes: Sequence[str],
    *,
    descend: Descend,
    batch: int,
    seed: int,
    limit: int,
    weights: Tensor | None = None,
    bf16: bool = False,
) -> None:
    """Cross-entropy on batches of like lengths in which the classes come equally often.

    `limit`: tokens of a text, at most. `weights` [C]: of the classes in the loss, beside that. `bf16`: products in it.
    """
    ids = [text_ids(tokenizer, text, limit) for text, _ in texts]
    labels = [classes.index(label) for _, label in texts]
    drawn = batches([len(row) for row in ids], labels, batch, random.Random(f"{seed}/fit"))

    def loss() -> Tensor:
        chosen = next(drawn)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = padded_outputs(model, tokenizer, [ids[i] for i in chosen]).float()
        wanted = torch.tensor([labels[i] for i in chosen], device=logits.device)
        return torch.nn.functional.cross_entropy(logits, wanted, weight=weights)

    descend(model, loss)


POOL = 8
"""Batches that are drawn together and then parted by length, so that little of each is padding."""


def batches(lengths: Sequence[int], labels: Sequence[int], batch: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices without end. In a pool of batches the classes come equally often; no text comes a second time before
    every other one of its class has come."""
    classes = sorted(set(labels))
    streams = [_passes([i for i, label in enumerate(labels) if label == which], rng) for which in classes]
    while True:
        pool = [next(streams[k % len(streams)]) for k in range(POOL * batch)]
        pool.sort(key=lengths.__getitem__)
        parts = [pool[at : at + batch] for at in range(0, len(pool), batch)]
        yield from rng.sample(parts, len(parts))


def _passes(members: list[int], rng: random.Random) -> Iterator[int]:
    while True:
        yield from rng.sample(members, len(members))


class Enough(Exception):
    """Raised by a `tick`: training ends here."""


def descend_with_adamw(
    model: Any, loss: Callable[[], Tensor], *, steps: int, lr: float, tick: Callable[[int, float], None]
) -> None:
    """AdamW with a linear warm-up over a tenth of the steps and a linear decay to 0, as BERT is fine-tuned. `tick` gets
    (step, loss) with the model in eval mode, and may raise Enough. Raises RuntimeError where the loss is not finite."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    warmup = max(1, steps // 10)
    try:
        for step in range(1, steps + 1):
            model.train()
            found = loss()
            if not torch.isfinite(found):
                raise RuntimeError(f"the loss is not finite: lower the learning rate ({lr:g})")
            found.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(step / warmup, (steps - step + 1) / max(1, steps - warmup))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.eval()
            tick(step, float(found.detach()))
    except Enough:
        pass
    finally:
        model.eval()


@dataclass(frozen=True)
class Examined:
    """What a classifier makes of labelled texts: `probabilities` [N, C], `labels` [N]."""

    probabilities: Float[Tensor, "N C"]
    labels: Int[Tensor, " N"]

    @property
    def best(self) -> Int[Tensor, " N"]:
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.best == self.labels).float().mean())

    def confusion(self) -> Int[Tensor, "C C"]:
        """How many of each class (row) are taken for each (column)."""
        count = self.probabilities.shape[1]
        return torch.bincount(self.labels * count + self.best, minlength=count**2).view(count, count)

    def f1(self) -> Float[Tensor, " C"]:
        """Of each class: 2 TP / (2 TP + FP + FN); NaN for one that no text has."""
        table = self.confusion().double()
        found = 2 * table.diag() / (table.sum(0) + table.sum(1))
        return found.where(table.sum(1) > 0, torch.nan)

    @property
    def macro_f1(self) -> float:
        """The mean over the classes that the texts have."""
        return float(self.f1().nanmean())

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        """For each bin of the confidence in the likeliest class: its mean, the share that was right, how many."""
        sure, right = self.probabilities.max(1).values, (self.best == self.labels).float()
        index = (sure * bins).long().clamp(max=bins - 1)
        inside = [(index == i).nonzero().squeeze(1) for i in range(bins)]
        return [
            {"predicted": float(sure[at].mean()), "observed": float(right[at].mean()), "n": len(at)}
            for at in inside
            if len(at)
        ]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): the bins' |right − sure|, weighted by their size."""
        rows = self.calibration()
        return sum(r["n"] * abs(r["predicted"] - r["observed"]) for r in rows) / max(1, len(self.labels))

    def metrics(self) -> dict[str, float]:
        return {
            "val/accuracy": self.accuracy,
            "val/macro_f1": self.macro_f1,
            "val/calibration_error": self.calibration_error,
        }


@torch.inference_mode()
def examine(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], classes: Sequence[str], *, limit: int, batch: int = 32
) -> Examined:
    """Of these texts, in their order."""
    ids = [text_ids(tokenizer, text, limit) for text, _ in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = torch.zeros(len(ids), len(classes))
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        found[some] = padded_outputs(model, tokenizer, [ids[i] for i in some]).float().softmax(-1).cpu()
    return Examined(found, torch.tensor([classes.index(label) for _, label in texts]))
