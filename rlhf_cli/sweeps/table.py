"""The table of a sweep: one row a job, and one a setting with mean ± std over its seeds."""

import csv
import io
import json
import math
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.runs.status import alive, read_status, write_atomic
from rlhf_cli.tracking.text import as_typed, printable

TRAIN = ("val/score", "val/kl", "val/repetition", "val/response_length")
JUDGED = ("val/gold_score", "hacking/index")
"""Columns more, where any job has them."""
REWARD_TRAIN = ("val/pairwise_accuracy", "val/pairwise_loss", "val/calibration_error")
SEEDS = ("seed",)
"""What settings are averaged over."""


def show(folder: Path) -> int:
    """Print the table of a sweep and write it as table.md, table.json and table.csv; 1 if any job is not done."""
    from rlhf_cli.sweeps.terminal import closing, print_table

    table = make(folder)
    write_atomic(folder / "table.json", json.dumps(table, indent=1) + "\n")
    write_atomic(folder / "table.md", markdown(table))
    write_atomic(folder / "table.csv", as_csv(table))
    print_table(table)
    for line in closing(table):
        print(line, flush=True)
    return int(any(row["state"] != "done" for row in table["jobs"]))


def make(folder: Path) -> dict[str, Any]:
    """{"sweep", "objective": the metric that it is about, "common": overrides of every job, "metrics": columns, "jobs":
    rows, "settings": rows}."""
    listed, objective = _jobs(folder)
    common = in_common([*listed.values()])
    latest = {number: results(folder / str(number)) for number in listed}
    columns: tuple[str, ...] = REWARD_TRAIN if any(REWARD_TRAIN[0] in metrics for metrics in latest.values()) else TRAIN
    several = dict.fromkeys(name for metrics in latest.values() for name in metrics if name.startswith(f"{JUDGED[0]}/"))
    columns += tuple(name for name in (*JUDGED, *several) if any(name in metrics for metrics in latest.values()))
    if objective and objective not in columns and any(objective in metrics for metrics in latest.values()):
        columns = (objective, *columns)
    jobs = []
    for number, overrides in listed.items():
        status, metrics = read_status(folder / str(number)), latest[number]
        jobs.append(
            {
                "job": number,
                "overrides": [o for o in overrides if o not in common],
                "state": state(status),
                **{name: metrics.get(name) for name in columns},
                "seconds": status.get("seconds"),
                "error": status.get("error"),
            }
        )
    return {
        "sweep": str(folder),
        "objective": objective,
        "common": common,
        "metrics": list(columns),
        "jobs": jobs,
        "settings": settings(jobs, columns),
    }


def in_common(jobs: list[list[str]]) -> list[str]:
    """The overrides that all of several jobs have; [] of one."""
    return [o for o in jobs[0] if all(o in job for job in jobs)] if len(jobs) > 1 else []


def _jobs(folder: Path) -> tuple[dict[int, list[str]], str | None]:
    """Overrides by job number, and the metric that the sweep is about."""
    try:
        record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        return {job["job"]: job["overrides"] for job in record["jobs"]}, record["shared"].get("objective")
    except (OSError, ValueError, LookupError):
        pass
    # a sweeper that proposes jobs as it goes leaves no list
    from omegaconf import OmegaConf

    from rlhf_cli.config.compose import saved_config

    found = {int(p.name): p / ".hydra" / "overrides.yaml" for p in folder.iterdir() if p.name.isdigit()}
    listed = {n: [str(o) for o in OmegaConf.load(p)] if p.exists() else [] for n, p in sorted(found.items())}
    with suppress(UserError):
        return listed, saved_config(folder / str(next(iter(listed), 0))).get("objective")
    return listed, None


def state(status: dict[str, Any]) -> str:
    """done | failed | interrupted | running | killed | not started"""
    if status.get("state") == "running":
        return "running" if alive(status) else "killed"
    return str(status.get("state", "not started"))


def results(folder: Path) -> dict[str, Any]:
    """The last metrics of a job, of whatever command."""
    from rlhf_cli.runs.folder import last_metrics

    try:
        return dict(json.loads((folder / "eval.json").read_text(encoding="utf-8"))["metrics"])
    except (OSError, ValueError, LookupError):
        return last_metrics(folder)


def settings(jobs: list[dict[str, Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds of each setting, of the jobs that are done."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in jobs:
        if row["state"] == "done":
            groups.setdefault(tuple(o for o in row["overrides"] if o.partition("=")[0] not in SEEDS), []).append(row)
    if all(len(rows) < 2 for rows in groups.values()):
        return []
    table = []
    for overrides, rows in groups.items():
        line: dict[str, Any] = {"overrides": list(overrides), "seeds": len(rows)}
        for name in columns:
            values = [row[name] for row in rows if isinstance(row[name], int | float)]
            line[name] = mean(values) if values else None
            line[f"{name}_std"] = stdev(values) if len(values) > 1 else None
        table.append(line)
    return table


def markdown(table: dict[str, Any]) -> str:
    """Both tables; cells can neither end a column nor carry markup."""
    names = [short(name) for name in table["metrics"]]
    jobs = [cells_of(row, table["metrics"], _code(row["overrides"])) for row in table["jobs"]]
    lines = _markdown_rows(["job", "overrides", "state", *names, "seconds"], jobs)
    if table["settings"]:
        lines += ["", "Mean ± standard deviation over seeds:", ""]
        lines += _markdown_rows(
            ["overrides", "seeds", *names],
            [
                [_code(row["overrides"]), str(row["seeds"]), *(spread(row, m) for m in table["metrics"])]
                for row in table["settings"]
            ],
        )
    if table["common"]:
        lines += ["", f"All jobs: {_code(table['common'])}"]
    for row in table["jobs"]:
        if row["error"]:
            lines += ["", f"Job {row['job']} {row['state']}: {_code([row['error']])}"]
    return "\n".join(lines) + "\n"


def cells_of(row: dict[str, Any], metrics: list[str], overrides: str, digits: int = 3) -> list[str]:
    """A job's row, without markup of any kind."""
    numbers = (number(row[name], digits) for name in metrics)
    return [str(row["job"]), overrides, row["state"], *numbers, number(row["seconds"], digits=1)]


def _markdown_rows(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _code(words: list[str]) -> str:
    text = printable(as_typed(words)).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def as_csv(table: dict[str, Any]) -> str:
    """One line a job, a column for each key that was swept; then one line a setting, its job being "mean"."""
    keys = list(dict.fromkeys(_key(o) for row in table["jobs"] for o in row["overrides"]))
    stds = [f"{name}_std" for name in table["metrics"]] if table["settings"] else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cell, ["job", *keys, "state", *table["metrics"], *stds, "seconds", "seeds", "error"]))
    for row in [*table["jobs"], *table["settings"]]:
        values = {_key(o): o.partition("=")[2] for o in row["overrides"]}
        found = [row.get(name) for name in (*table["metrics"], *stds)]
        ends = [row.get("seconds"), row.get("seeds"), row.get("error")]
        line = [row.get("job", "mean"), *(values.get(k) for k in keys), row.get("state"), *found, *ends]
        writer.writerow(map(cell, line))
    return out.getvalue()


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return "" if value is None else value
    try:
        float(value)
        return value
    except ValueError:
        return "'" + value if value.lstrip()[:1] in tuple("=+-@") or value[:1] in tuple("\t\r\n") else value


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def short(metric: str) -> str:
    name = metric.removeprefix("val/").removeprefix("response_").replace("gold_score/", "")
    return name.removesuffix("_score").replace("/index", "")


def number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def spread(row: dict[str, Any], metric: str, digits: int = 3) -> str:
    std = row[f"{metric}_std"]
    return number(row[metric], digits) + (f" ± {number(std, digits)}" if std is not None else "")
