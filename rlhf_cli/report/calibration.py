"""How sure a classifier is against how often it is right, as a picture."""

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """A reliability diagram (Guo et al. 2017, fig. 1): on the diagonal a classifier is as often right as it is sure."""
    from rlhf_cli.report.figure import drawing

    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(4.2, 4.2), layout="constrained")
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as sure as right")
        sizes = [20 + 300 * row["n"] / max(r["n"] for r in rows) for row in rows]
        axes.scatter([r["predicted"] for r in rows], [r["observed"] for r in rows], s=sizes, alpha=0.8)
        axes.set(xlabel="how sure (mean of the bin)", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.05))
        axes.set_title(title, fontsize=11)
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(file, dpi=120)
        pyplot.close(figure)
