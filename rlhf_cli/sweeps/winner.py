"""The best job of a sweep, by the metric that the sweep is about."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.runs.best import named, worth
from rlhf_cli.tracking.jsonl import read_jsonl


@dataclass(frozen=True)
class Reached:
    """What a job has to show: its best checkpoint if it kept one by the sweep's metric, else its last validation."""

    job: dict[str, Any]
    """Its row in the table."""
    value: float
    worth: float
    """The value, negated where the lowest is the best, less the nats of KL above the sweep's budget."""
    lowest: bool
    step: int | None
    """None for what does not train."""
    place: Path
    """The checkpoint; the job's folder where there is none."""


def winner(folder: Path, jobs: Iterable[dict[str, Any]], objective: str) -> Reached | None:
    """The best of the jobs (rows of the table) that are done; None where none of them has the metric."""
    found = [reached(folder / str(job["job"]), job, objective) for job in jobs if job["state"] == "done"]
    return max((job for job in found if job), key=lambda job: job.worth, default=None)


def reached(place: Path, job: dict[str, Any], objective: str) -> Reached | None:
    """The better of a job's last validation and its checkpoint that is best by the objective, if it kept that one."""
    config, rows = _config(place), _rows(place, objective)
    kept = config.get("checkpoint")
    kept = kept if isinstance(kept, dict) and kept.get("best") == objective else {}
    lowest = kept.get("best_is") == "lowest" or _minimised(place)
    candidates = [job | {"step": rows[-1]["step"] if rows else None}]
    if kept and (best := named(place, "best")):
        candidates += [row for row in rows if f"step_{row['step']:06d}" == best]
    found = []
    for row in candidates:
        step = row["step"]
        checkpoint = place / "checkpoints" / f"step_{step or 0:06d}"
        where = checkpoint if checkpoint.is_dir() else place
        value = worth(row, objective, config.get("kl_budget"), sign=-1.0 if lowest else 1.0)
        if value is not None and math.isfinite(value):
            found.append(Reached(job, row[objective], value, lowest, step, where))
    return max(found, key=lambda one: one.worth, default=None)


def _config(place: Path) -> dict[str, Any]:
    from rlhf_cli.config.compose import saved_config

    try:
        return saved_config(place)
    except UserError:  # a command that keeps none
        return {}


def _rows(place: Path, objective: str) -> list[dict[str, Any]]:
    try:
        return [row for row in read_jsonl(place / "metrics.jsonl") if {objective, "step"} <= row.keys()]
    except (OSError, ValueError, AttributeError):
        return []  # the table says what it could read


def _minimised(place: Path) -> bool:
    """Whether a sweeper looks for the lowest (Optuna's `hydra.sweeper.direction`)."""
    from omegaconf import OmegaConf

    path = place / ".hydra" / "hydra.yaml"
    return path.is_file() and OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.direction") == "minimize"
