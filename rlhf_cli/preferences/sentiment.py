"""A sentiment classifier, from an encoder's (or decoder's) weights and labelled reviews to a folder with a card."""

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.labelled import Labelled, halves, hold_out, labelled_texts
from rlhf_cli.data.reviews import SENTIMENTS, Review
from rlhf_cli.engine.device import bf16_gain
from rlhf_cli.engine.load import load_classifier, load_tokenizer
from rlhf_cli.engine.low_rank import add_low_rank, merge_low_rank
from rlhf_cli.engine.padding import position_limit, settle_padding, text_ids
from rlhf_cli.preferences.classify import Enough, Examined, descend_with_adamw, examine, fit

QUALITY = "quality.json"
WORTH_IT = 1.5
"""Products in bfloat16 must be so many times as fast, since not all of a step is products."""
LOOKED_AT = 400
"""Held-out texts that decide when training ends."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    part: str = "all"
    """Of the reviews: all, or the first or second half; classifiers of different halves have no review in common."""
    neutral: bool = True
    """Whether neutral is a class of its own; made where the labels have none."""
    texts: int = 12_000
    """To train on, at most."""
    epochs: int = 1
    batch: int = 32
    lr: float = 1e-4
    max_tokens: int = 128
    held_out: float = 0.1
    every: int = 75
    """Steps between two looks at the texts that decide when training ends."""
    patience: int = 3
    """Looks without a better macro F1, after which training ends; the best weights are kept."""
    class_weights: dict[str, float] | None = None
    lora: dict[str, Any] | None = None
    """rank, alpha and targets of low-rank adapters; None or rank 0: all weights learn."""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for name in SENTIMENTS if self.neutral or name != "neutral")

    def steps(self, texts: int) -> int:
        return max(1, self.epochs * texts // self.batch)


@dataclass(frozen=True)
class Material:
    """Labelled texts in three parts that share no review: `train`, `looked` (they decide when training ends) and
    `held`, by their kind: `short` parts and `whole` texts. `reviews`: the review of each whole one."""

    train: list[Labelled]
    looked: list[Labelled]
    held: dict[str, list[Labelled]]
    reviews: list[str]
    made: str
    """Where the labels come from."""

    @property
    def counts(self) -> dict[str, int]:
        """Texts to train on, by class."""
        return {name: sum(label == name for _, label in self.train) for name in SENTIMENTS}


@dataclass(frozen=True)
class Trained:
    model: Any
    tokenizer: Any
    classes: tuple[str, ...]
    found: dict[str, Examined]
    """On held-out texts, by kind; `by_review` is the mean over a review's texts, where some have several."""
    cut: dict[str, int]
    """How many texts were cut to `max_tokens`: of those to train on (`train`), and of each kind."""
    step: int
    """That was best."""
    seconds: float
    """It took, its looks among them."""


Tick = Callable[[int, int, dict[str, float]], None]
"""(step, steps, metrics)"""


def material(reviews: list[Review], recipe: Recipe, *, seed: int) -> Material:
    """Raises UserError where a class has no text to train on."""
    others, held = hold_out(halves(reviews, recipe.part), recipe.held_out, seed=seed)
    to_train, looked = hold_out(others, recipe.held_out / 2, seed=seed + 1)
    texts, to_look, judged = (labelled_texts(part, seed=seed + i) for i, part in enumerate((to_train, looked, held)))

    def wanted(rows: list[Labelled]) -> list[Labelled]:
        return [row for row in rows if row[1] in recipe.classes]

    ids = [review.id for review, (_, label) in zip(held, judged.whole, strict=True) if label in recipe.classes]
    made = Material(
        train=_sample(wanted([*texts.whole, *texts.short]), recipe.texts, seed),
        looked=_sample(wanted([*to_look.whole, *to_look.short]), LOOKED_AT, seed),
        held={kind: rows for kind in ("short", "whole") if (rows := wanted(getattr(judged, kind)))},
        reviews=ids,
        made=texts.made if recipe.neutral else texts.made.partition("; neutral:")[0],
    )
    if missing := [name for name in recipe.classes if not made.counts[name]]:
        raise UserError(f"no text to train on is {' or '.join(missing)}: give more reviews (data.source=)")
    return made


def _sample(texts: list[Labelled], count: int, seed: int) -> list[Labelled]:
    return random.Random(f"{seed}/chosen").sample(texts, min(count, len(texts)))


def train(start: str, texts: Material, recipe: Recipe, *, device: torch.device, seed: int, tick: Tick) -> Trained:
    """Fine-tune `start` (a folder, hub id or GGUF file), with products in bfloat16 where that is faster."""
    torch.manual_seed(seed)  # the new head is drawn
    begun = time.monotonic()
    classes = recipe.classes
    model = load_classifier(start, device=device, classes=classes)
    tokenizer = load_tokenizer(start)
    settle_padding(model, tokenizer, name=start)
    if (lora := recipe.lora) and lora["rank"]:
        add_low_rank(model, rank=lora["rank"], alpha=lora["alpha"], targets=lora["targets"], key="classifier_train")
    limit = min(recipe.max_tokens, position_limit(model, tokenizer))
    steps = recipe.steps(len(texts.train))
    best = _Best(model, partial(examine, model, tokenizer, texts.looked, classes, limit=limit))
    look = partial(best.look, steps=steps, recipe=recipe, tick=tick)
    given = recipe.class_weights or {}
    fit(
        model,
        tokenizer,
        texts.train,
        classes,
        descend=partial(descend_with_adamw, steps=steps, lr=recipe.lr, tick=look),
        batch=recipe.batch,
        seed=seed,
        limit=limit,
        weights=torch.tensor([given.get(name, 1.0) for name in classes], device=device) if given else None,
        bf16=device.type == "cuda" or bf16_gain(rounding=False) > WORTH_IT,
    )
    model.load_state_dict(best.weights)
    merge_low_rank(model)
    seconds = time.monotonic() - begun
    found = {kind: examine(model, tokenizer, rows, classes, limit=limit) for kind, rows in texts.held.items()}
    if "whole" in found and len(set(texts.reviews)) < len(texts.reviews):
        found["by_review"] = by_review(found["whole"], texts.reviews)
    read = {"train": texts.train} | texts.held
    cut = {kind: sum(len(text_ids(tokenizer, text)) > limit for text, _ in rows) for kind, rows in read.items()}
    return Trained(model, tokenizer, classes, found, cut, best.step, seconds)


PERFECT = 0.995
"""Macro F1 of the texts that are looked at, from which nothing is left to learn."""


class _Best:
    """The weights of the look with the best macro F1."""

    def __init__(self, model: Any, looked: Callable[[], Examined]) -> None:
        self.model, self.looked = model, looked
        self.score, self.step, self.since = -1.0, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def look(self, step: int, loss: float, *, steps: int, recipe: Recipe, tick: Tick) -> None:
        if step % recipe.every and step != steps:
            tick(step, steps, {"train/cross_entropy": loss})
            return
        metrics = self.looked().metrics()
        self.since += 1
        if metrics["val/macro_f1"] > self.score:
            self.score, self.step, self.since = metrics["val/macro_f1"], step, 0
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        tick(step, steps, {"train/cross_entropy": loss} | metrics)
        if self.since >= recipe.patience or self.score >= PERFECT:
            raise Enough


def quality(trained: Trained) -> dict[str, Any]:
    """What the card and quality.json say: for each kind of held-out text its figures, confusion and calibration."""
    told: dict[str, Any] = {}
    for kind, found in trained.found.items():
        told[kind] = {name.removeprefix("val/"): value for name, value in found.metrics().items()}
        told[kind] |= {
            "f1": {
                name: None if math.isnan(f) else f for name, f in zip(trained.classes, found.f1().tolist(), strict=True)
            },
            "classes": list(trained.classes),
            "confusion": found.confusion().tolist(),
            "calibration": found.calibration(),
            "texts": len(found.labels),
            "cut": trained.cut.get(kind, 0),
            "accuracy_without_neutral": without_neutral(found, trained.classes).accuracy,
        }
    return told


def without_neutral(found: Examined, classes: Sequence[str]) -> Examined:
    """The texts that are positive or negative, judged between these two."""
    kept = torch.tensor([i for i, name in enumerate(classes) if name != "neutral"])
    rows = torch.isin(found.labels, kept)
    return Examined(found.probabilities[rows][:, kept], torch.searchsorted(kept, found.labels[rows]))


def by_review(found: Examined, reviews: Sequence[str]) -> Examined:
    """Of each review the mean of the probabilities of its texts; their label is the review's."""
    names = list(dict.fromkeys(reviews))
    index = torch.tensor([names.index(name) for name in reviews])
    sums = torch.zeros(len(names), found.probabilities.shape[1]).index_add(0, index, found.probabilities)
    first = [reviews.index(name) for name in names]
    return Examined(sums / torch.bincount(index)[:, None], found.labels[first])


def save(trained: Trained, folder: Path, about: str) -> dict[str, Any]:
    """A plain Hugging Face folder with its card (`about` and the figures), there whole or not at all; returns its
    quality."""
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    trained.model.save_pretrained(temporary)
    trained.tokenizer.save_pretrained(temporary)
    told = quality(trained)
    (temporary / QUALITY).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (temporary / "README.md").write_text(about + _tables(told), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return told


def card(trained: Trained, texts: Material, recipe: Recipe, *, start: str, source: str, seed: int) -> str:
    """What it was made of and how; `start` is what the trunk is called."""
    import transformers

    base = "" if Path(start).exists() or "/" not in start else f"base_model: {start}\n"
    counts = ", ".join(f"{texts.counts[name]} {name}" for name in trained.classes)
    part = "" if recipe.part == "all" else f" (the {recipe.part} half of its reviews)"
    return f"""---
{base}library_name: transformers
pipeline_tag: text-classification
tags: [sentiment]
---
# A classifier of sentiment: {", ".join(trained.classes)}

Fine-tuned from `{Path(start).name if Path(start).exists() else start}` by `rlhf classifier-train`, seed {seed}, in
{trained.seconds:.0f} seconds, with torch {torch.__version__} and transformers {transformers.__version__}. Use it:

    rlhf train reward=minilm reward.path=<this folder>
    transformers.pipeline("text-classification", "<this folder>")

- Trained on {counts} texts of `{Path(source).name}`{part}. Labels: {texts.made}.
  {trained.cut["train"]} of them were cut to {recipe.max_tokens} tokens.
- The weights are those after step {trained.step}, the best on {len(texts.looked)} texts of other reviews; the figures
  are of reviews that played no part in either.
- Recipe: `{asdict(recipe)}`.
"""


def _tables(told: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {kind.replace('_', ' ')} | {q['texts']} | {q['cut']} | {q['accuracy']:.3f} | {q['macro_f1']:.3f} | "
        f"{q['accuracy_without_neutral']:.3f} | {q['calibration_error']:.3f} |"
        for kind, q in told.items()
    )
    confusion = "\n\n".join(
        f"Held-out, {kind.replace('_', ' ')}: rows are labels, columns what the classifier says\n\n"
        f"| | {' | '.join(q['classes'])} |\n|---|{'---|' * len(q['classes'])}\n"
        + "\n".join(
            f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(q["classes"], q["confusion"], strict=True)
        )
        for kind, q in told.items()
    )
    return f"""
| held-out texts | how many | cut | accuracy | macro F1 | accuracy between positive and negative | ECE |
|---|---|---|---|---|---|---|
{rows}

{confusion}
"""
