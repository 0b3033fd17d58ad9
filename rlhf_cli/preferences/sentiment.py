"""A sentiment classifier, from an encoder's (or decoder's) weights and labelled reviews to a folder with a card."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.labelled import Labelled, LabelledTexts, halves, hold_out, labelled_texts
from rlhf_cli.data.reviews import SENTIMENTS, Review
from rlhf_cli.engine.device import bf16_slowdown
from rlhf_cli.engine.load import load_classifier, load_tokenizer
from rlhf_cli.engine.padding import position_limit, settle_padding, text_ids
from rlhf_cli.preferences.classify import Enough, Examined, descend_with_adamw, examine, fit

QUALITY = "quality.json"
WORTH_IT = 0.7
"""Of float32's time: products in bfloat16 must take less, since not all of a step is products."""
LOOKED_AT = 400
"""Held-out texts that decide when training ends."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    part: str = "all"
    """Of the reviews: all, or the first or second half; classifiers of different halves have no review in common."""
    texts: int = 6000
    """To train on, at most."""
    epochs: int = 2
    batch: int = 32
    lr: float = 5e-5
    max_tokens: int = 128
    held_out: float = 0.1
    every: int = 50
    """Steps between two looks at the held-out texts."""
    patience: int = 3
    """Looks without a better macro F1, after which training ends; the best weights are kept."""
    class_weights: dict[str, float] | None = None


@dataclass(frozen=True)
class Trained:
    model: Any
    tokenizer: Any
    found: dict[str, Examined]
    """On held-out texts: `short` ones and `whole` reviews."""
    counts: dict[str, int]
    """Texts trained on, by class."""
    made: str
    """Where the labels come from."""
    step: int
    """That was best."""
    truncated: int
    """Texts that were cut to `max_tokens`."""


Tick = Callable[[int, int, dict[str, float]], None]
"""(step, steps, metrics)"""


def train(start: str, reviews: list[Review], recipe: Recipe, *, device: torch.device, seed: int, tick: Tick) -> Trained:
    """Fine-tune `start` (a folder, hub id or GGUF file) on `reviews`, with products in bfloat16 where that is faster.
    Raises UserError where a class is missing."""
    torch.manual_seed(seed)  # the new head is drawn
    to_train, held = hold_out(halves(reviews, recipe.part), recipe.held_out, seed=seed)
    texts, held_texts = labelled_texts(to_train, seed=seed), labelled_texts(held, seed=seed + 1)
    chosen = _chosen(texts, recipe.texts, seed)
    counts: dict[str, int] = {name: sum(label == name for _, label in chosen) for name in SENTIMENTS}
    if missing := [name for name, count in counts.items() if not count]:
        raise UserError(f"no text to train on is {' or '.join(missing)}: give more reviews (data.source=)")
    model = load_classifier(start, device=device, classes=SENTIMENTS)
    tokenizer = load_tokenizer(start)
    settle_padding(model, tokenizer, name=start)
    limit = min(recipe.max_tokens, position_limit(model, tokenizer))
    truncated = sum(len(text_ids(tokenizer, text)) > limit for text, _ in chosen)
    steps = max(1, recipe.epochs * len(chosen) // recipe.batch)
    best = _Best(
        model, partial(examine, model, tokenizer, _chosen(held_texts, LOOKED_AT, seed), SENTIMENTS, limit=limit)
    )
    descend = partial(
        descend_with_adamw, steps=steps, lr=recipe.lr, tick=partial(best.look, steps=steps, recipe=recipe, tick=tick)
    )
    given = recipe.class_weights or {}
    weights = torch.tensor([given.get(name, 1.0) for name in SENTIMENTS], device=device) if given else None
    fit(
        model,
        tokenizer,
        chosen,
        SENTIMENTS,
        descend=descend,
        batch=recipe.batch,
        seed=seed,
        limit=limit,
        weights=weights,
        bf16=device.type == "cuda" or bf16_slowdown(rounding=False) < WORTH_IT,
    )
    model.load_state_dict(best.weights)
    judged = {"short": held_texts.short, "whole": held_texts.whole}
    found = {name: examine(model, tokenizer, rows, SENTIMENTS, limit=limit) for name, rows in judged.items() if rows}
    return Trained(model, tokenizer, found, counts, texts.made, best.step, truncated)


def _chosen(texts: LabelledTexts, count: int, seed: int) -> list[Labelled]:
    import random

    both = [*texts.whole, *texts.short]
    return random.Random(f"{seed}/chosen").sample(both, min(count, len(both)))


class _Best:
    """The weights of the look with the best macro F1."""

    def __init__(self, model: Any, looked: Callable[[], Examined]) -> None:
        self.model, self.looked = model, looked
        self.score, self.step, self.since = -1.0, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def look(self, step: int, loss: float, *, steps: int, recipe: Recipe, tick: Tick) -> None:
        if step % recipe.every and step != steps:
            tick(step, steps, {"train/loss": loss})
            return
        metrics = self.looked().metrics()
        self.since += 1
        if metrics["val/macro_f1"] > self.score:
            self.score, self.step, self.since = metrics["val/macro_f1"], step, 0
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        tick(step, steps, {"train/loss": loss} | metrics)
        if self.since >= recipe.patience:
            raise Enough


def quality(trained: Trained) -> dict[str, Any]:
    """What the card and quality.json say: for each kind of held-out text its figures, confusion and calibration."""
    told: dict[str, Any] = {}
    for kind, found in trained.found.items():
        told[kind] = {name.removeprefix("val/"): value for name, value in found.metrics().items()}
        told[kind]["f1"] = dict(zip(SENTIMENTS, found.f1().tolist(), strict=True))
        told[kind]["confusion"] = found.confusion().tolist()
        told[kind]["calibration"] = found.calibration()
        told[kind]["texts"] = len(found.labels)
        told[kind]["accuracy_without_neutral"] = without_neutral(found).accuracy
    return told


def without_neutral(found: Examined) -> Examined:
    """The texts that are positive or negative, judged between these two."""
    middle = SENTIMENTS.index("neutral")
    kept = [i for i in range(len(SENTIMENTS)) if i != middle]
    rows = found.labels != middle
    return Examined(found.probabilities[rows][:, kept], (found.labels[rows] > middle).long())


def save(trained: Trained, folder: Path, recipe: Recipe, *, start: str, source: str, seed: int) -> dict[str, Any]:
    """A plain Hugging Face folder with its card, there whole or not at all; returns its quality."""
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    trained.model.save_pretrained(temporary)
    trained.tokenizer.save_pretrained(temporary)
    told = quality(trained)
    (temporary / QUALITY).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (temporary / "README.md").write_text(card(trained, recipe, told, start, source, seed), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return told


def card(trained: Trained, recipe: Recipe, told: dict[str, Any], start: str, source: str, seed: int) -> str:
    rows = "\n".join(
        f"| {kind} | {q['texts']} | {q['accuracy']:.3f} | {q['macro_f1']:.3f} | {q['accuracy_without_neutral']:.3f} | "
        f"{q['calibration_error']:.3f} |"
        for kind, q in told.items()
    )
    confusion = "\n\n".join(
        f"Held-out {kind} texts, rows are labels, columns what the classifier says:\n\n"
        f"| | {' | '.join(SENTIMENTS)} |\n|---|{'---|' * len(SENTIMENTS)}\n"
        + "\n".join(
            f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(SENTIMENTS, q["confusion"], strict=True)
        )
        for kind, q in told.items()
    )
    return f"""---
pipeline_tag: text-classification
tags: [sentiment]
---
# A classifier of sentiment: {", ".join(SENTIMENTS)}

Fine-tuned from `{Path(start).name if Path(start).exists() else start}` by `rlhf classifier-train`, seed {seed}.

- Trained on {", ".join(f"{count} {name}" for name, count in trained.counts.items())} texts of `{Path(source).name}`
  ({recipe.part} of its reviews), with {trained.made}. {trained.truncated} were cut to {recipe.max_tokens} tokens.
- The weights are those after step {trained.step}, the best on held-out texts. Recipe: `{asdict(recipe)}`.

| held-out texts | how many | accuracy | macro F1 | accuracy between positive and negative | ECE |
|---|---|---|---|---|---|
{rows}

{confusion}
"""


def with_typed(recipe: Recipe, **typed: Any) -> Recipe:
    """The recipe with what was given, None: as it is."""
    return replace(recipe, **{key: value for key, value in typed.items() if value is not None})
