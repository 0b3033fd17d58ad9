"""The table at the end of a sweep."""

import json
from pathlib import Path
from typing import Any

TRAIN = ("val/score", "val/kl", "val/repetition", "val/response_length")
REWARD_TRAIN = ("val/pairwise_accuracy", "val/pairwise_loss", "val/calibration_error")


def show(sweep: str, jobs: list[list[str]]) -> int:
    """Print one row a job, write sweep.json; 1 if any job did not end well."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rlhf_cli.training.run import last_metrics
    from rlhf_cli.training.status import read_status

    latest = [last_metrics(Path(sweep) / str(number)) for number in range(len(jobs))]
    columns = REWARD_TRAIN if any(REWARD_TRAIN[0] in metrics for metrics in latest) else TRAIN
    common = [override for override in jobs[0] if all(override in job for job in jobs)] if len(jobs) > 1 else []
    caption = escape("all jobs: " + " ".join(common)) if common else None
    table = Table(title=f"sweep {escape(sweep)}", caption=caption)
    for column in ("job", "overrides", "state"):
        table.add_column(column, overflow="fold")
    for column in columns:
        table.add_column(column.removeprefix("val/").removeprefix("response_"), justify="right")
    rows: list[dict[str, Any]] = []
    for number, overrides in enumerate(jobs):
        folder = Path(sweep) / str(number)
        status, metrics = read_status(folder), latest[number]
        state = status.get("state", "not started")
        rows.append(
            {
                "job": number,
                "overrides": overrides,
                "state": state,
                "error": status.get("error"),
                **{c: metrics.get(c) for c in columns},
            }
        )
        style = "" if state == "done" else "bold red"
        numbers = [f"{metrics[c]:.3f}" if isinstance(metrics.get(c), float) else "–" for c in columns]
        varied = "\n".join(override for override in overrides if override not in common)
        table.add_row(str(number), escape(varied), state, *numbers, style=style)
    Console().print(table)
    for row in rows:
        if row["error"]:
            Console().print(f"job {row['job']} {row['state']}: {row['error']}", markup=False)
    if Path(sweep).is_dir():
        (Path(sweep) / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["state"] != "done" for row in rows))
