"""rlhf reward-train"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_cli.tracking.text import shell


def run(cfg: DictConfig) -> float | None:
    """Train a reward model on ranked responses; returns the config's objective on held-out pairs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    config = settle("reward-train", cfg, list(hydra.overrides.task))
    folder = Path(hydra.runtime.output_dir)
    from rlhf_cli.runs.reward_training import train_reward_model

    sweeping = hydra.mode == RunMode.MULTIRUN
    before, after, bins = train_reward_model(config, folder, group=Path(hydra.sweep.dir).name if sweeping else None)
    show(before, after, bins)
    print(f"use it: rlhf train reward=learned reward.path={shell(folder / 'reward_model')}", flush=True)
    return after.get(config.objective)


def show(before: dict[str, float], after: dict[str, float], bins: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("on held-out prompts", "before", "after", title="reward model")
    for name in ("val/pairwise_accuracy", "val/pairwise_loss", "val/calibration_error"):
        table.add_row(name.removeprefix("val/"), f"{before[name]:.3f}", f"{after[name]:.3f}")
    console = Console()
    console.print(table)
    shown = Table("sure of itself", "right", "pairs", title="calibration")
    for row in bins:
        shown.add_row(f"{row['predicted']:.2f}", f"{row['observed']:.2f}", str(row["n"]))
    console.print(shown)
