"""rlhf train"""

from pathlib import Path

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float | None:
    """One job; returns the last value of the config's objective (what a sweeper maximises)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    config = settle("train", cfg, list(hydra.overrides.task))
    sweeping = hydra.mode == RunMode.MULTIRUN
    from rlhf_cli.training.run import last_metrics, train

    folder = Path(hydra.runtime.output_dir)
    metrics = train(
        config,
        folder,
        group=Path(hydra.sweep.dir).name if sweeping else None,
    )
    return (metrics or last_metrics(folder)).get(config.objective)
