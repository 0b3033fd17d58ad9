"""rlhf train"""

from pathlib import Path

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float | None:
    """One job; returns the last validation score (what a sweeper maximises)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    config = settle("train", cfg, list(hydra.overrides.task))
    sweeping = hydra.mode == RunMode.MULTIRUN
    from rlhf_cli.training.run import train

    metrics = train(
        config,
        Path(hydra.runtime.output_dir),
        group=Path(hydra.sweep.dir).name if sweeping else None,
    )
    return metrics.get("val/score")
