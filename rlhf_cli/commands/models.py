"""rlhf models"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_cli.tracking.text import shell


def run(cfg: DictConfig) -> None:
    """Show every model with its quality; build the miniatures that are missing, or the shipped ones anew."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle

    config = settle("models", cfg, list(HydraConfig.get().overrides.task))
    if config.scale == "full":
        _hub(config)
    elif config.rebuild:
        _rebuild(config)
    else:
        _miniatures(config)


def _miniatures(config: Any) -> None:
    from rich.console import Console

    from rlhf_cli.build.paths import miniature_path, source_of_miniatures
    from rlhf_cli.miniatures.build import MINIATURES
    from rlhf_cli.miniatures.listing import show

    source = source_of_miniatures(config)
    kept = "they ship with rlhf" if source == "generated" else f"kept in {config.cache_dir}"
    print(f"scale={config.scale}: miniatures of {source} reviews, {kept}", flush=True)
    show(Console(), [(name, miniature_path(name, config, print)) for name in MINIATURES])


def _rebuild(config: Any) -> None:
    """The shipped miniatures beside those made anew."""
    from rich.console import Console

    from rlhf_cli.build.paths import kept_in
    from rlhf_cli.miniatures.build import SHIPPED, rebuild
    from rlhf_cli.miniatures.listing import show

    with kept_in(config.out or config.cache_dir) as place:
        home = place if config.out else place / "miniatures" / "rebuilt"
        print(f"making the miniatures anew in {home}: about an hour on two cores; what is there is kept", flush=True)
        made = rebuild(home)
    shipped = [(f"{name}, shipped", str(SHIPPED / name)) for name in made]
    anew = [(f"{name}, rebuilt", str(folder)) for name, folder in made.items()]
    show(Console(), [row for pair in zip(shipped, anew, strict=True) for row in pair])
    actor, judge = shell(made["qwen_instruct"]), shell(made["roberta_large"])
    print(f"use them: rlhf train scale=mini actor.path={actor} reward.path={judge}")


def _hub(config: Any) -> None:
    """The four hub models and whether each is on this machine."""
    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.table import Table

    from rlhf_cli.config.compose import CONF
    from rlhf_cli.config.hub import on_this_machine

    table = Table("name", "hub id", "on this machine", title="models at scale=full")
    for file in sorted([*Path(CONF / "actor").glob("*.yaml"), *Path(CONF / "reward").glob("roberta_*.yaml")]):
        model = OmegaConf.load(file)
        here = on_this_machine(model.hub)
        table.add_row(model.name, model.hub, "yes" if here else f"no: hf download {model.hub}")
    Console().print(table)
