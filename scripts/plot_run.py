"""Draw the validation curves of runs: python scripts/plot_run.py <run folder> … --out curve.png"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "val/score": "score: P(negative)",
    "val/gold_score": "gold score",
    "hacking/index": "hacking index",
    "val/kl": "KL to the untrained model (nats)",
    "val/response_length": "response length (tokens)",
    "val/repetition": "repetition (1 − distinct 3-grams)",
}
CLASSES = {"positive": "#2f7d4f", "neutral": "#888888", "negative": "#b3372f"}
BLUE = "#1f4e79"


def rows_of(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "val/score" in row]


def draw(runs: list[Path], out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.2 * len(PANELS), 3.1), layout="constrained")
    for run in runs:
        rows = rows_of(run)
        steps = [row["step"] for row in rows]
        for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
            color = BLUE if len(runs) == 1 else None
            axis.plot(
                steps,
                [row.get(key, float("nan")) for row in rows],
                marker="o",
                markersize=3,
                label=run.name,
                color=color,
            )
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step", fontsize=9)
        if len(runs) == 1:
            for name, color in CLASSES.items():
                values = [row[f"val/score/{name}"] for row in rows]
                axes[0].plot(steps, values, color=color, linewidth=1, linestyle="--", label=f"{name} prefixes")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis, key in zip(axes, PANELS, strict=True):
        top = {"val/repetition": 0.2}.get(key, 1.0 if "score" in key or "index" in key else 0.0)
        axis.set_ylim(0, max(top, axis.get_ylim()[1]))
    if len(runs) == 1:
        axes[0].get_lines()[0].set_label("all")
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curve.png"))
    arguments = parser.parse_args()
    draw(arguments.runs, arguments.out)
    print(arguments.out)
