"""rlhf runs"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """List the runs: how far each is and what it reached."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle
    from rlhf_cli.runs.catalogue import catalogue, chosen
    from rlhf_cli.tracking.jsonl import as_line

    config = settle("runs", cfg, list(HydraConfig.get().overrides.task))
    found = catalogue(config.folders or (["outputs"] if Path("outputs").is_dir() else []))
    runs = chosen(found, sort=config.sort, state=config.state, tag=config.tag)
    if config.as_json:
        print("".join(as_line(line) for line in runs), end="")
    elif runs:
        show(runs)
    else:
        print("no run there yet: rlhf train" if not found else f"none of {len(found)} runs is one of these")


def show(runs: list[dict[str, Any]]) -> None:
    """As a table; at 80 columns names break between words, and figures stay whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.tracking.text import printable

    console = Console()
    heads = ("state", "step", "score", "gold", "KL", "hack", "age")
    cells = [_figures(line) for line in runs]
    room = console.width - sum(1 + max(map(len, column)) for column in zip(heads, *cells, strict=True))
    table = Table("run", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in ("state", "step") else "right", no_wrap=True)
    for line, (state, *figures) in zip(runs, cells, strict=True):
        told = Text(wrapped(printable(line["name"]), room), "bold")
        told.append(f"\n{printable(line['folder'])}", "not bold dim")
        if line["tags"] or line["notes"]:
            words = " ".join([*(f"#{tag}" for tag in line["tags"]), line["notes"]])
            told.append(f"\n{printable(words)}", "not bold italic")
        table.add_row(told, Text(state, COLOURS.get(state, "")), *figures)
    console.print(table)


def _figures(line: dict[str, Any]) -> list[str]:
    figures = ("–" if line[key] is None else f"{line[key]:.2f}" for key in ("score", "gold", "kl", "hacking"))
    return [line["state"], f"{line['step']}/{line['steps']}", *figures, ago(line["age_s"])]


def wrapped(name: str, width: int) -> str:
    """The name in lines of this width; `seed 0` is not torn apart."""
    import textwrap

    glued = name.replace(" seed ", " seed\N{NO-BREAK SPACE}")
    return "\n".join(textwrap.wrap(glued, max(width, 1), break_long_words=False)).replace("\N{NO-BREAK SPACE}", " ")


COLOURS = {"running": "green", "failed": "red", "dead": "red", "interrupted": "yellow"}


def ago(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `9 d`."""
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
