"""rlhf classifier-train"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_cli.tracking.text import shell


def run(cfg: DictConfig) -> float | None:
    """Train a classifier on labelled reviews; returns the config's objective on held-out texts."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    config = settle("classifier-train", cfg, list(hydra.overrides.task))
    folder = Path(hydra.runtime.output_dir)
    from rlhf_cli.report.calibration import draw
    from rlhf_cli.runs.classifier_training import train_classifier

    told = train_classifier(config, folder)
    show(told)
    for kind, figures in told.items():
        draw(figures["calibration"], folder / f"calibration_{kind}.png", f"held-out {kind} texts")
    place = folder / "classifier"
    print(f"its card: {place / 'README.md'}; calibration: {folder}/calibration_*.png", flush=True)
    print(f"use it: rlhf train reward=minilm reward.path={shell(place)}")
    print(f"or as the judge that is not trained on: gold=minilm gold.path={shell(place)}")
    kind = "short" if "short" in told else "whole"
    return told[kind].get(config.objective.removeprefix("val/"))


def show(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("held-out", "texts", "accuracy", "macro F1", "pos. against neg.", "ECE", title="classifier")
    names = ("accuracy", "macro_f1", "accuracy_without_neutral", "calibration_error")
    for kind, q in told.items():
        table.add_row(kind.replace("_", " "), str(q["texts"]), *(f"{q[name]:.3f}" for name in names))
    console.print(table)
    for kind, q in told.items():
        confusion = Table(f"{kind.replace('_', ' ')}: label", *(f"says {name}" for name in q["classes"]))
        for name, row in zip(q["classes"], q["confusion"], strict=True):
            confusion.add_row(name, *map(str, row))
        console.print(confusion)
