"""Reward and gold against √KL: best-of-n, the optimal policy, and runs."""

from pathlib import Path
from typing import Any


def judges_in(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of gold: `gold/<name>` of each judge where there are several, else `gold`."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith("gold/"))) or ["gold"]


def draw(told: dict[str, Any], file: Path) -> None:
    """A panel for the reward and one for each gold judge, over √KL as Gao et al. 2022 draw them."""
    from rlhf_cli.evaluation.frontier import BELIEVABLE
    from rlhf_cli.report.figure import drawing

    believed = [row for row in told["optimal"] if row["ess"] >= BELIEVABLE]
    with drawing() as pyplot:
        keys = ("reward", *judges_in(told["best_of_n"] + told["checkpoints"]))
        size = (5 * len(keys), 4.4)
        figure, panels = pyplot.subplots(1, len(keys), figsize=size, layout="constrained", sharex=True)
        for axes, key in zip(panels, keys, strict=True):
            for rows, label, style in (
                (told["best_of_n"], "best of n (KL: upper bound)", {"color": "0.35", "marker": "o", "linestyle": "--"}),
                (believed, "optimal policy, exp(r/β)", {"color": "0.6", "marker": ".", "linestyle": ":"}),
            ):
                points = [(max(0.0, r["kl"]) ** 0.5, r[key]) for r in rows if r.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
            for name in dict.fromkeys(row["run"] for row in told["checkpoints"]):
                rows = [r for r in told["checkpoints"] if r["run"] == name and r.get(key) is not None]
                if rows:
                    axes.plot([max(0.0, r["kl"]) ** 0.5 for r in rows], [r[key] for r in rows], marker=".", label=name)
            axes.set(xlabel="√KL to the untrained policy (√nats)", title=key)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        figure.savefig(file, dpi=130)
        pyplot.close(figure)
