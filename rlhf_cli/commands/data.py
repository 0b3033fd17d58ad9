"""rlhf data"""

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Build the prefix data set (or take it from the cache) and show it."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from rlhf_cli.build.experiment import prefixes
    from rlhf_cli.config.compose import settle
    from rlhf_cli.data.prefixes import show
    from rlhf_cli.engine.device import compute

    config = settle("data", cfg, list(HydraConfig.get().overrides.task))
    print(f"scale={config.scale} · {config.data.name} from {config.data.source}", flush=True)
    show(prefixes(config, compute(config.device, config.precision), lambda text: print(text, flush=True)), Console())
