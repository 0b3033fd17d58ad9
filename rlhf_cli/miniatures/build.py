"""Small models of the same classes and file formats as the hub's, made on first use and kept."""

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
VERSION = 3
"""Raise it when a recipe changes what it makes."""


@dataclass(frozen=True)
class Recipe:
    """How long each miniature is trained."""

    reviews: int = 9000
    held_out: int = 200
    base_steps: int = 350
    instruct_steps: int = 120
    classifier_steps: int = 300
    batch: int = 16
    classifier_batch: int = 32
    width: int = 128


def miniature(
    name: str,
    *,
    source: str,
    cache_dir: Path,
    seed: int = 0,
    notify: Callable[[str], None] = print,
    recipe: Recipe | None = None,
) -> Path:
    """The folder of a miniature, built if it is not there. Two processes at once are safe: one waits."""
    from filelock import FileLock

    recipe = recipe or Recipe()
    shaped_by = json.dumps([VERSION, identity(source), seed, asdict(recipe)])
    home = cache_dir / "miniatures" / hashlib.sha256(shaped_by.encode()).hexdigest()[:16]
    folder = home / name
    if (folder / "quality.json").exists():
        return folder
    if name == "qwen_instruct":
        miniature("qwen_base", source=source, cache_dir=cache_dir, seed=seed, notify=notify, recipe=recipe)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{name}.lock"):
        if not (folder / "quality.json").exists():
            temporary = home / f".tmp_{name}"
            shutil.rmtree(temporary, ignore_errors=True)
            reviews = load_reviews(source, seed=seed, limit=recipe.reviews)
            quality = _build(name, reviews, home, temporary, recipe, seed)
            (temporary / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            notify(f"built {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in quality.items()))
    return folder


def quality(folder: Path) -> dict[str, float]:
    return json.loads((folder / "quality.json").read_text())


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
        model = AutoModelForCausalLM.from_pretrained(home / "qwen_base")
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
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    held_out = make(test, tokenizer, seed=seed + 1, width=recipe.width)
    return {"perplexity": actors.perplexity(model, held_out)}


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
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    tests = {"snippets": classifiers.snippets, "reviews": classifiers.whole_reviews}
    return {
        f"accuracy on {kind}": classifiers.accuracy(model, tokenizer, texts(test, seed=seed + 1))
        for kind, texts in tests.items()
    }


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
