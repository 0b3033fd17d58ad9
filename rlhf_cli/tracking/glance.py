"""The curves of a run in a few lines of a terminal."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

# What a curve is called, its metric, and its number format.
CURVES = (
    ("score", "train/score", ".2f"),
    ("gold", "val/gold_score", ".2f"),
    ("KL", "train/kl", ".2f"),
    ("hacking", "hacking/index", ".2f"),
    ("loss", "train/pairwise_loss", ".3f"),
    ("cross-entropy", "train/cross_entropy", ".3f"),
    ("macro F1", "val/macro_f1", ".3f"),
)
BARS = "▁▂▃▄▅▆▇█"
NARROW = 64
"""Columns below which the curves stand one below the other."""


class Curves:
    """Remembers the metrics of CURVES; as a rich renderable, two beside each other: bars, first → last value."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        for _, metric, _ in CURVES:
            if metric in metrics:
                self._seen.setdefault(metric, []).append(metrics[metric])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        known = [curve for curve in CURVES if len(self._seen.get(curve[1], [])) > 1]
        if not known:
            return
        columns = 1 if options.max_width < NARROW else 2
        names = max(len(name) for name, _, _ in known)
        ends = {metric: self._ends(metric, form, options.ascii_only) for _, metric, form in known}
        bars = max(4, options.max_width // columns - names - max(map(len, ends.values())) - 6)
        cells = []
        for name, metric, _ in known:
            drawn = "" if options.ascii_only else sparkline(condensed(self._seen[metric], bars), bars)
            cells.append(Text.assemble((f"{name:{names}}  ", "bold"), (f"{drawn:{bars}}", "cyan"), f"  {ends[metric]}"))
        grid = Table.grid(padding=(0, 2))
        for at in range(0, len(cells), columns):
            grid.add_row(*cells[at : at + columns])
        yield grid

    def _ends(self, metric: str, form: str, ascii_only: bool) -> str:
        values = self._seen[metric]
        return f"{values[0]:{form}} {'->' if ascii_only else '→'} {values[-1]:{form}}"


def condensed(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: the means of as many equal stretches, so that a curve shows the whole run."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    stretches = [values[a:b] for a, b in pairwise(edges)]
    return [sum(stretch) / len(stretch) for stretch in stretches]


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """The last `width` values as bars from the least to the greatest; what is not a number is a blank."""
    shown = values[-width:]
    finite = [value for value in shown if abs(value) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    # The comparison is false for NaN as well as for the infinities.
    return "".join(
        BARS[round((value - low) / span * (len(BARS) - 1))] if abs(value) < float("inf") else " " for value in shown
    )
