"""Run folders as the report reads them: their own files and nothing else, no network, no W&B."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.config.compose import saved_config
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.flat import flat
from rlhf_cli.config.older import as_before
from rlhf_cli.config.schema import Config
from rlhf_cli.evaluation.hacking import onset
from rlhf_cli.runs.status import alive
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.tracking.text import printable

FRONTIER = "frontier.json"


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    config: dict[str, Any]
    """Flat: `algo.beta`."""
    status: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    before_after: dict[str, Any] = field(default_factory=dict)
    """What the run wrote of one prompt before and after, with the words that earned the score; {} where it did not."""

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def state(self) -> str:
        return state_in(self.status)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged as a finite number."""
        return [(row["step"], row[metric]) for row in self.metrics if isinstance(row.get(metric), int | float)]

    def last(self, metric: str) -> float | None:
        curve = self.curve(metric)
        return curve[-1][1] if curve else None

    @property
    def seconds(self) -> float:
        """Of training, without validation and set-up."""
        return sum(v for row in self.metrics for k, v in row.items() if k.startswith("time/") and v is not None)

    @property
    def flagged_by(self) -> str:
        """What the run compares with its threshold: index or index_low."""
        return str(self.config.get("stop.hacking_by", "index"))

    @property
    def onset(self) -> int | None:
        """The step at which hacking began, by the run's own threshold."""
        return onset(self.curve(f"hacking/{self.flagged_by}"), self.config.get("stop.hacking_index", 1.0))


def state_in(status: dict[str, Any]) -> str:
    """The state that a run told of, or "dead" where it tells of running and its process is gone."""
    state = str(status.get("state", "unknown"))
    known = {"pid", "heartbeat"} <= status.keys()
    gone = state == "running" and known and status["pid"] != os.getpid() and not alive(status)
    return "dead" if gone else state


def _of_today(saved: dict[str, Any]) -> dict[str, Any]:
    """With the keys that releases since have added or given up: else older and newer runs would differ in those."""
    try:
        return as_before(saved, Config, {})
    except UserError:  # a newer release's, or edited by hand: it can be shown all the same
        return saved


def load(folder: Path) -> Run:
    """Raises UserError where a file of the run cannot be read."""
    try:
        return Run(
            folder=folder,
            config=flat(_of_today(saved_config(folder))),
            status=_object(folder / "status.json"),
            environment=_object(folder / "environment.json"),
            metrics=_rows(folder / "metrics.jsonl"),
            samples=_rows(folder / "samples.jsonl"),
            before_after=_object(folder / "before_after.json"),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {number}: no object with a whole number as its step")
    return rows


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find(places: list[str]) -> tuple[list[Run], list[dict[str, Any]], list[dict[str, Any]]]:
    """(runs, probe.json contents, compare.json contents) in these folders and below them.

    Raises UserError for a place that is not there or holds none of them.
    """
    runs: dict[Path, Run] = {}
    probes, compares = [], []
    for place in places:
        root = Path(place).expanduser()
        if not root.is_dir():
            raise UserError(f"runs={place}: there is no such folder")
        found = sorted({path.parent for path in root.rglob("metrics.jsonl")}, key=_order)
        extra = [_object(p) for name in ("probe.json", "compare.json", FRONTIER) for p in sorted(root.rglob(name))]
        if not found and not extra:
            nothing = f"runs={place}: no run is there (a run's folder holds config.yaml and metrics.jsonl)"
            raise UserError("\n  ".join([nothing, *left_out([place], [])]))
        runs |= {folder.resolve(): load(folder) for folder in found if (folder / "config.yaml").is_file()}
        probes += [e for e in extra if "readings" in e]
        compares += [e for e in extra if "typed" in e]
    usable = [run for run in runs.values() if run.curve("val/score")]
    if not usable and not probes and not compares and not frontiers(places, []):
        raise UserError("\n  ".join([f"runs={places}: no run there has a validation yet", *left_out(places, [])]))
    return usable, probes, compares


def frontiers(places: list[str], runs: list[Run]) -> list[dict[str, Any]]:
    """The contents of every frontier.json in these folders and below them; and of those beside them, in the same folder
    or one of its folders, that speak of one of these runs."""
    names, found = {run.folder.resolve().name for run in runs}, {}
    for root in (Path(place).expanduser().resolve() for place in places):
        inside = sorted(root.rglob(FRONTIER))
        for path in [*inside, *sorted(root.parent.glob(FRONTIER)), *sorted(root.parent.glob(f"*/{FRONTIER}"))]:
            told = _object(path)
            if not {"best_of_n", "optimal", "checkpoints"} <= told.keys():
                continue
            if path in inside or names & {row["run"] for row in told["checkpoints"]}:
                found[path] = told
    return list(found.values())


def left_out(places: list[str], runs: list[Run]) -> list[str]:
    """What else began in these folders and is neither done nor among the runs: where, how it ended and why."""
    shown = {run.folder.resolve() for run in runs}
    lines = {}
    for path in (p for place in places for p in Path(place).expanduser().rglob("status.json")):
        status, folder = _object(path), path.parent
        if folder.resolve() not in shown and status.get("state") not in (None, "done"):
            why = str(status.get("error") or "no validation yet").splitlines()[0]
            lines[folder.resolve()] = printable(f"{folder}: {state_in(status)} ({why})")
    return [lines[folder] for folder in sorted(lines, key=_order)]


def _order(folder: Path) -> tuple[Any, ...]:
    """2 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in folder.parts)
