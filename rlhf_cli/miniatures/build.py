"""Small models of the same classes and file formats as the hub's: four ship with the package, others are built from
other reviews on first use and kept in the cache."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.data.reviews import Review
from rlhf_cli.data.sources import identity, load_reviews

MINIATURES = ("qwen_base", "qwen_instruct", "roberta_base", "roberta_large")
SHIPPED = Path(__file__).with_name("shipped")
"""Those of the generated reviews, made by `rebuild`."""
VERSION = 5
"""Raise it when a recipe changes what it makes."""


@dataclass(frozen=True)
class Recipe:
    """How long each miniature is trained; the defaults are for somebody who waits for them."""

    reviews: int = 9000
    held_out: int = 200
    base_steps: int = 350
    instruct_steps: int = 120
    classifier_steps: int = 300
    batch: int = 16
    classifier_batch: int = 32
    width: int = 128
    dtype: str = "float32"
    """Of the weights on disk; all training is in float32."""


LONG = Recipe(reviews=60_000, held_out=1000, base_steps=6000, instruct_steps=2500, dtype="float16")
"""Of those that ship."""


def miniature(
    name: str,
    *,
    source: str,
    cache_dir: Path,
    seed: int = 0,
    notify: Callable[[str], None] = print,
    recipe: Recipe | None = None,
) -> Path:
    """The folder of a miniature: the shipped one for generated reviews, else built if it is not there."""
    if source == "generated" and seed == 0 and recipe is None:
        return SHIPPED / name
    recipe = recipe or Recipe()
    shaped_by = json.dumps([VERSION, identity(source), seed, asdict(recipe)])
    home = cache_dir / "miniatures" / hashlib.sha256(shaped_by.encode()).hexdigest()[:16]
    return _built(name, home, source, recipe, seed, notify)


def rebuild(home: Path, notify: Callable[[str], None] = print) -> dict[str, Path]:
    """The shipped miniatures, made anew from the seed in this folder: about an hour on two cores."""
    return {name: _built(name, home, "generated", LONG, 0, notify) for name in MINIATURES}


def _built(name: str, home: Path, source: str, recipe: Recipe, seed: int, notify: Callable[[str], None]) -> Path:
    """Built unless it is there. Two processes at once are safe: one waits."""
    from filelock import FileLock

    folder = home / name
    if (folder / "quality.json").exists():
        return folder
    if name == "qwen_instruct":
        _built("qwen_base", home, source, recipe, seed, notify)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{name}.lock"):
        if not (folder / "quality.json").exists():
            temporary = home / f".tmp_{name}"
            shutil.rmtree(temporary, ignore_errors=True)
            reviews = load_reviews(source, seed=seed, limit=recipe.reviews)
            quality = _build(name, reviews, home, temporary, recipe, seed)
            card = Card(name, source, seed, recipe, quality)
            (temporary / "README.md").write_text(card.text(temporary / "model.safetensors"), encoding="utf-8")
            (temporary / "quality.json").write_text(json.dumps(quality, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            notify(f"built {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in quality.items()))
    return folder


@dataclass(frozen=True)
class Card:
    """The model card of a miniature."""

    name: str
    source: str
    seed: int
    recipe: Recipe
    quality: dict[str, float]

    def text(self, weights: Path) -> str:
        import torch
        import transformers

        command = "rlhf models rebuild=true" if self.recipe == LONG else "rlhf models data.source=<reviews>"
        made_from = "reviews that rlhf writes itself" if self.source == "generated" else "the reviews of data.source"
        kind = "Qwen2" if self.name.startswith("qwen") else "RoBERTa"
        rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in self.quality.items())
        return f"""---
license: apache-2.0
tags: [simulation]
---
# A miniature in place of {self.name}

A {kind} of about a million parameters, trained from random weights on {made_from}. It stands in for the real model in
rehearsals (`scale=mini`) and shares no weights with it: what it does says nothing about the real one.

- Made by `{command}`, seed {self.seed}, in float32, with torch {torch.__version__} and transformers
  {transformers.__version__}.
- Recipe: `{self.recipe}`.
- sha256 of model.safetensors: `{hashlib.sha256(weights.read_bytes()).hexdigest()}`.

| on held-out reviews | |
|---|---|
{rows}
"""


def quality(folder: Path) -> dict[str, float]:
    return json.loads((folder / "quality.json").read_text(encoding="utf-8"))


def _build(name: str, reviews: list[Review], home: Path, to: Path, recipe: Recipe, seed: int) -> dict[str, float]:
    import torch

    from rlhf_cli.engine.load import quiet

    quiet()
    held = min(recipe.held_out, len(reviews) // 10)
    test, train = reviews[:held], reviews[held:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = _actor if name.startswith("qwen") else _classifier
        return make(name, train, test, home, to, recipe, seed)


def _actor(
    name: str, train: list[Review], test: list[Review], home: Path, to: Path, recipe: Recipe, seed: int
) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from rlhf_cli.miniatures import actors
    from rlhf_cli.miniatures.tokenizers import END, IM_END, load, qwen_tokenizer

    if name == "qwen_base":
        tokenizer = qwen_tokenizer([review.text for review in train], eos=END)
        model = actors.new_actor(len(tokenizer), tokenizer.convert_tokens_to_ids(END))
        make, steps, lr = actors.documents, recipe.base_steps, 5e-3
        generation: dict[str, Any] = {"eos_token_id": tokenizer.convert_tokens_to_ids(END)}
    else:
        tokenizer = load(home / "qwen_base")
        tokenizer.eos_token = IM_END
        model = AutoModelForCausalLM.from_pretrained(home / "qwen_base", dtype=torch.float32)
        make, steps, lr = actors.dialogues, recipe.instruct_steps, 1.5e-3
        ends = [tokenizer.convert_tokens_to_ids(token) for token in (IM_END, END)]
        # as Qwen2.5-Instruct's: a trap for rollouts that read it
        generation = {"eos_token_id": ends, "do_sample": True, "top_k": 20, "top_p": 0.8}
        generation |= {"temperature": 0.7, "repetition_penalty": 1.05}
    examples = make(train, tokenizer, seed=seed, width=recipe.width)
    with _progress(name, steps) as tick:
        actors.fit(model, examples, steps=steps, batch=recipe.batch, lr=lr, seed=seed, tick=tick)
    pad = tokenizer.convert_tokens_to_ids(END)
    model.generation_config = GenerationConfig(pad_token_id=pad, bos_token_id=pad, **generation)
    model.config.eos_token_id = tokenizer.eos_token_id
    _save(model, tokenizer, to, recipe)
    held_out = make(test, tokenizer, seed=seed + 1, width=recipe.width)
    return {"perplexity": actors.perplexity(AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32), held_out)}


def _classifier(
    name: str, train: list[Review], test: list[Review], home: Path, to: Path, recipe: Recipe, seed: int
) -> dict[str, float]:
    from rlhf_cli.miniatures import classifiers
    from rlhf_cli.miniatures.tokenizers import roberta_tokenizer

    make = classifiers.snippets if name == "roberta_base" else classifiers.whole_reviews
    tokenizer = roberta_tokenizer([review.text for review in train])
    model = classifiers.new_classifier(name, len(tokenizer))
    steps = recipe.classifier_steps * (1 if train[0].sentences else 2)  # a lexicon's labels take longer to learn
    examples = make(train, seed=seed)
    with _progress(name, steps) as tick:
        classifiers.fit(model, tokenizer, examples, steps=steps, batch=recipe.classifier_batch, seed=seed, tick=tick)
    _save(model, tokenizer, to, recipe)
    model.float()
    tests = {"snippets": classifiers.snippets, "reviews": classifiers.whole_reviews}
    return {
        f"accuracy on {kind}": classifiers.accuracy(model, tokenizer, texts(test, seed=seed + 1))
        for kind, texts in tests.items()
    }


def _save(model: Any, tokenizer: Any, to: Path, recipe: Recipe) -> None:
    import torch

    model.to(getattr(torch, recipe.dtype)).save_pretrained(to)
    tokenizer.save_pretrained(to)


class _progress:
    """`with _progress(name, steps) as tick`: a bar on a terminal, one line elsewhere."""

    def __init__(self, name: str, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns)
        self.name, self.steps = name, steps

    def __enter__(self) -> Callable[[], None]:
        if not self.bar.console.is_terminal:
            print(f"building the miniature {self.name} ({self.steps} steps)", flush=True)
            return lambda: None
        self.bar.start()
        task = self.bar.add_task(f"building {self.name}", total=self.steps)
        return lambda: self.bar.advance(task)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
