"""A whole classifier training in its folder: reviews, fit, figures, a folder with a card."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rlhf_cli.build.paths import classifier_path
from rlhf_cli.config.schema import ClassifierTrainConfig
from rlhf_cli.config.weights import MINILM, find
from rlhf_cli.data.sources import load_reviews
from rlhf_cli.engine.device import compute
from rlhf_cli.preferences.sentiment import Material, Recipe, card, material, save, train
from rlhf_cli.runs.folder import begun
from rlhf_cli.runs.signals import stop_on_signals
from rlhf_cli.runs.status import Interrupted, concluded, write_status
from rlhf_cli.tracking.trackers import make_trackers


def train_classifier(config: ClassifierTrainConfig, folder: Path) -> dict[str, Any]:
    """Train in `folder`; returns the figures on held-out texts, by their kind. Leaves classifier/ and metrics.jsonl.

    A signal ends it after the step, and nothing is saved but the log. Raises what went wrong, after recording it.
    """
    wanted = config.classifier_train.model_dump()
    start = wanted.pop("start") or ("roberta_large" if config.scale == "mini" else None)
    recipe = Recipe(**{f.name: wanted[f.name] for f in fields(Recipe)})
    with stop_on_signals() as stop, begun(config, folder, steps=0):
        with stop.at_once():
            path = classifier_path(start, config, print) if start else find("classifier_train.start", *MINILM).path
            print(f"a classifier of {config.data.source}, from {path} · seed {config.seed}", flush=True)
            texts = material(load_reviews(config.data.source), recipe, seed=config.seed)
            print(_said(texts), flush=True)
        trackers = make_trackers(
            config.tracking.to,
            folder,
            config.model_dump(by_alias=True),
            steps=recipe.steps(len(texts.train)),
            resume_step=None,
            project=config.tracking.project,
            entity=config.tracking.entity,
            name=folder.name,
            group=config.tracking.group,
            run_id=None,
        )

        def tick(step: int, steps: int, metrics: dict[str, float]) -> None:
            trackers.log(step, metrics)
            write_status(folder, "running", step=step, steps=steps)
            if stop.signal:
                raise Interrupted(stop.signal)

        with concluded(trackers.finish):
            device = compute(config.device, "fp32").device
            trained = train(path, texts, recipe, device=device, seed=config.seed, tick=tick)
            name = path if start else MINILM[0]
            about = card(trained, texts, recipe, start=name, source=config.data.source, seed=config.seed)
            told = save(trained, folder / "classifier", about)
        write_status(folder, "done", step=trained.step, steps=trained.step)
        for kind, count in trained.cut.items():
            if count:
                print(f"{count} {kind} texts were cut to {recipe.max_tokens} tokens (classifier_train.max_tokens)")
        print(f"{trained.seconds:.0f} s; the weights after step {trained.step} were best", flush=True)
        return told


def _said(texts: Material) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in texts.counts.items() if count)
    held = ", ".join(f"{len(rows)} {kind}" for kind, rows in texts.held.items())
    return f"to train on: {counts} · held out: {held} · labels: {texts.made}"
