"""Reward and gold against √KL: best-of-n, the optimal policy, and runs."""

from pathlib import Path
from typing import Any

from rlhf_cli.report.chart import Chart, Series
from rlhf_cli.report.sections import Row, Section, Table
from rlhf_cli.tracking.text import printable

GREY = 7
"""The style of what was not trained."""


def judges_in(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of gold: `gold/<name>` of each judge where there are several, else `gold`."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith("gold/"))) or ["gold"]


def standings(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, a row a run): where each run ended, its share of best-of-n's gain there, how its gold curve bends."""
    from rlhf_cli.evaluation.frontier import BestOfN, Point, fitted, past_the_peak, reached

    best = [BestOfN(row["kl"], row["reward"], row["gold"], row["n"]) for row in told["best_of_n"]]
    judges = judges_in(told["checkpoints"])
    named = [judge.replace("/", " ") for judge in judges]
    found = []
    for name in dict.fromkeys(row["run"] for row in told["checkpoints"]):
        rows = [row for row in told["checkpoints"] if row["run"] == name]
        last = rows[-1]
        share = reached(Point(last["kl"], last["reward"], last["gold"]), best)
        kls, golds = [r["kl"] for r in rows], [r["gold"] for r in rows]
        bend = "–"
        if None not in golds and (curve := fitted(kls, golds)):
            turned = past_the_peak(kls, golds)
            peak = "does not turn" if curve.peak is None else f"peak at KL {curve.peak:.1f}"
            bend = f"past the peak (KL {curve.peak:.1f})" if turned else peak
        gain = "–" if share is None else f"{100 * share:.0f} %"
        gain = "beyond it" if best and last["kl"] > best[-1].kl else gain  # a KL below 0 by chance is not beyond
        ends = ["–" if (v := last.get(key)) is None else f"{v:.3f}" for key in ("reward", *judges)]
        found.append([name, str(last["step"]), f"{last['kl']:.2f}", *ends, gain, bend])
    return ["run", "step", "KL", "reward", *named, "of best-of-n's gain there", "gold curve"], found


def frontier_section(told: dict[str, Any]) -> Section:
    """The picture and the table of a frontier.json, for the page."""
    from rlhf_cli.evaluation.frontier import BELIEVABLE

    believed = [row for row in told["optimal"] if row["ess"] >= BELIEVABLE]
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in told["checkpoints"]:
        runs.setdefault(printable(str(row["run"])), []).append(row)
    lines = [("best of n (KL: upper bound)", told["best_of_n"], GREY, "6 3"), ("optimal policy", believed, GREY, "2 3")]
    lines += [(name, rows, style, "") for style, (name, rows) in enumerate(runs.items())]
    charts = []
    for key in ("reward", *judges_in(told["best_of_n"] + told["checkpoints"])):
        series = []
        for name, rows, style, dash in lines:
            points = [(max(0.0, r["kl"]) ** 0.5, float(r[key])) for r in rows if r.get(key) is not None]
            if points:
                series.append(Series(name, [x for x, _ in points], [y for _, y in points], None, style, dash=dash))
        if series:
            title = f"{key.replace('/', ' ')} against what the untrained policy could reach"
            charts.append(Chart(title, "√KL to the untrained policy, √nats", key.replace("/", " "), series))
    columns, rows = standings(told)
    cells: list[Row] = [[printable(cell) for cell in row] for row in rows]
    best = max(told["best_of_n"], key=lambda row: row["n"], default=None)
    answer = "Without any training, "
    answer += f"best of {best['n']} reaches a reward of {best['reward']:.2f}. " if best else "nothing was sampled. "
    shares = [f"{row[0]} has {row[-2]} of its gain at the same KL" for row in cells if str(row[-2]).endswith("%")]
    answer += f"Of the runs, {'; '.join(shares[:6])}." if shares else ""
    past = [str(row[0]) for row in cells if str(row[-1]).startswith("past")]
    answer += f" Past the peak of their gold score: {', '.join(past)}." if past else ""
    table = [Table("What was reached", columns, cells)] if cells else []
    return Section("Frontier", "What could have been reached at each KL, and what was?", answer.strip(), charts, table)


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
