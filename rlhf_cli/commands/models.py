"""rlhf models"""

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Build the miniatures that are missing (scale=mini) and show every model with its quality."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle

    config = settle("models", cfg, list(HydraConfig.get().overrides.task))
    if config.scale == "full":
        _hub(config)
        return
    from rich.console import Console

    from rlhf_cli.build.paths import miniature_path
    from rlhf_cli.miniatures.build import MINIATURES
    from rlhf_cli.miniatures.report import show

    print(
        f"scale={config.scale}: miniatures of {config.data.source} text, kept in {config.cache_dir}",
        flush=True,
    )
    show(Console(), [(name, miniature_path(name, config, print)) for name in MINIATURES])


def _hub(config: object) -> None:
    """The four hub models and whether each is on this machine."""
    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.table import Table

    from rlhf_cli.config.compose import CONF
    from rlhf_cli.config.hub import on_this_machine

    table = Table("name", "hub id", "on this machine", title="models at scale=full")
    for file in sorted([*(CONF / "actor").glob("*.yaml"), *(CONF / "reward").glob("roberta_*.yaml")]):
        model = OmegaConf.load(file)
        here = on_this_machine(model.hub)
        table.add_row(model.name, model.hub, "yes" if here else f"no: hf download {model.hub}")
    Console().print(table)
