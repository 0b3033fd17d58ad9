"""rlhf train"""

from pathlib import Path

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float | None:
    """One job; returns the last value of the config's objective (what a sweeper maximises)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config = settle("train", cfg, list(hydra.overrides.task), folder=folder)
    sweeping = hydra.mode == RunMode.MULTIRUN
    from rlhf_cli.runs.best import worth
    from rlhf_cli.runs.folder import last_metrics
    from rlhf_cli.runs.training_run import train

    typed = [o for o in hydra.overrides.task if o.startswith("critic") and o != "critic=none"]
    if typed and not config.algo.needs_critic:
        print(f"{' '.join(typed)} is not used: the advantages of algo={config.algo.name} need no critic", flush=True)
    metrics = train(
        config,
        folder,
        group=Path(hydra.sweep.dir).name if sweeping else None,
    )
    return worth(metrics or last_metrics(folder), config.objective, config.kl_budget)
