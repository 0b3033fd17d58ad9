"""Classifiers that are fine-tuned on first use, kept in the cache, and then found there."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.config.weights import find
from rlhf_cli.engine.device import compute

VERSION = 4
"""Raise it when the recipe changes what it makes."""
SEED = 0
"""These are fixed, as hub models are."""


def fine_tuned(judge: Any, config: Config, cache: Path, notify: Callable[[str], None]) -> str:
    """The folder of the classifier that `judge.fine_tune` describes, trained on the reviews of `data.source` unless it
    is there. Two processes at once are safe: one waits."""
    from filelock import FileLock

    from rlhf_cli.data.sources import identity
    from rlhf_cli.preferences.sentiment import QUALITY

    named = [VERSION, SEED, judge.hub, judge.fine_tune.model_dump(), identity(config.data.source)]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    folder = cache / "classifiers" / f"{judge.name}_{judge.fine_tune.part}_{key}"
    if not (folder / QUALITY).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not (folder / QUALITY).exists():
                _make(judge, config, folder, notify)
    return str(folder)


def _make(judge: Any, config: Config, folder: Path, notify: Callable[[str], None]) -> None:
    from rlhf_cli.data.sources import load_reviews
    from rlhf_cli.preferences.sentiment import Recipe, card, material, save, train

    wanted = judge.fine_tune
    recipe = Recipe(part=wanted.part, texts=wanted.texts, epochs=wanted.epochs)
    seed = SEED + (wanted.part == "second")  # another head and another order than the judge of the first half
    start = find(judge.name, judge.hub, judge.package).path
    reviews = load_reviews(config.data.source)
    if len(reviews) < 100:
        raise UserError(
            f"{judge.name} is fine-tuned on the reviews of data.source={config.data.source}, and there are "
            f"{len(reviews)}: give 100 at least, or a classifier (reward.path=, gold.path=)"
        )
    notify(f"fine-tuning {judge.name} on reviews of {config.data.source} ({wanted.part} half), once; kept in {folder}")
    device = compute(config.device, "fp32").device
    texts = material(reviews, recipe, seed=seed)
    trained = train(start, texts, recipe, device=device, seed=seed, tick=Told(judge.name, notify))
    about = card(trained, texts, recipe, start=judge.hub, source=config.data.source, seed=seed)
    told = save(trained, folder, about)
    listed = ", ".join(f"{kind.replace('_', ' ')} {q['accuracy']:.3f}" for kind, q in told.items())
    notify(f"{judge.name}: accuracy on held-out {listed} ({folder / 'README.md'})")


class Told:
    """A line about every tenth of the way, the first one with an estimate of the time."""

    def __init__(self, name: str, notify: Callable[[str], None]) -> None:
        self.name, self.notify, self.begun, self.last = name, notify, time.monotonic(), 0

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        early = step == min(5, steps)
        if not early and step * 10 // steps == self.last:
            return
        self.last = step * 10 // steps
        left = (time.monotonic() - self.begun) / step * (steps - step)
        looked = f" · accuracy {metrics['val/accuracy']:.3f}" if "val/accuracy" in metrics else ""
        loss = metrics["train/cross_entropy"]
        self.notify(f"{self.name}: step {step} of {steps} · cross-entropy {loss:.3f}{looked} · {left:.0f} s left")
