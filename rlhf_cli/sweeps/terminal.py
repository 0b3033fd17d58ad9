"""A sweep in the terminal: its table, the best job, and how to go on."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_cli.runs.best import named
from rlhf_cli.sweeps.table import cells_of, number, short, spread
from rlhf_cli.sweeps.winner import winner
from rlhf_cli.tracking.text import as_typed, printable, shell, to_copy

WIDE = 120


def print_table(table: dict[str, Any]) -> None:
    """Two digits and few lines, so that the overrides' words are whole at 80 columns; the files have three digits."""
    console = Console()
    metrics = _shown(table["metrics"], console.width)
    shown = Table(title=Text(f"sweep {table['sweep']}"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("job", "overrides", "state"):
        shown.add_column(column, overflow="fold", no_wrap=column != "overrides")
    for column in (*map(_brief, metrics), "s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table["jobs"]:
        cells = cells_of(row, metrics, printable(as_typed(row["overrides"])), 2)
        shown.add_row(*map(Text, cells), style="" if row["state"] == "done" else "bold red")
    console.print(shown)
    if table["settings"]:
        console.print(_means(table["settings"], metrics, console.width))
    if table["common"]:
        console.print(Text(f"all jobs: {printable(as_typed(table['common']))}"))
    for row in table["jobs"]:
        if row["error"]:
            console.print(Text(f"job {row['job']} {row['state']}: {printable(row['error'])}"))


def _means(settings: list[dict[str, Any]], metrics: list[str], width: int) -> Table:
    counts = {row["seeds"] for row in settings}
    over = f"{counts.pop()} seeds" if len(counts) == 1 else "seeds"
    if width < WIDE:
        metrics = [name for name in metrics if name != "val/repetition"]
    means = Table(title=f"mean ± std over {over}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    means.add_column("overrides", overflow="fold")
    for column in (*(["seeds"] if counts else []), *map(_brief, metrics)):
        means.add_column(column, justify="right", no_wrap=True)
    for row in settings:
        cells = [printable(as_typed(row["overrides"])), *([str(row["seeds"])] if counts else [])]
        cells += [spread(row, name, 2).replace(" ", "") for name in metrics]
        means.add_row(*map(Text, cells))
    return means


def _shown(metrics: list[str], width: int) -> list[str]:
    """Of several gold judges the first: each one's column, in the files, would leave no room for the overrides."""
    return [name for name in metrics if width > WIDE or not name.startswith("val/gold_score/")]


def _brief(metric: str) -> str:
    """For a terminal of 80 columns."""
    return {"repetition": "rep", "length": "len", "hacking": "hack"}.get(short(metric), short(metric))


def closing(table: dict[str, Any]) -> list[str]:
    """The best job by the sweep's objective, and what to type next; [] where no job is done."""
    folder, objective = Path(table["sweep"]), table["objective"] or "val/score"
    best = winner(folder, table["jobs"], objective)
    if best is None:
        return []
    place = folder / str(best.job["job"])
    lead = "best" if all(row["state"] == "done" for row in table["jobs"]) else "best so far"
    of = f" ({printable(as_typed(best.job['overrides']))})" if best.job["overrides"] else ""
    at = f" at step {best.step}" if best.step is not None else ""
    value = f"{'lowest ' if best.lowest else ''}{objective} {best.value:.2f}"
    if over := (-best.value if best.lowest else best.value) - best.worth:
        value += f" ({over:.1f} nats above kl_budget)"
    lines = [f"{lead}: job {best.job['job']}{of}, {value}{at}:", f"      {best.place}"]
    last = best.job.get(objective)
    if number(last, 2) != number(best.value, 2):
        lines.append(f"      (the table has last validations: job {best.job['job']} ended at {number(last, 2)})")
    if not (place / "checkpoints").is_dir():
        return lines  # no policy was trained: there is no page of it
    # of a run folder the last checkpoint is taken
    chosen = place if named(place, "last") == best.place.name else best.place
    commands = {
        f"rlhf report {shell(folder)}": "the page",
        f"rlhf compare {shell(place)}": "its before and after",
        f"rlhf sample checkpoint={shell(chosen)}": "what it writes",
    }
    return [*lines, *to_copy(commands)]
