"""The trackers of a run, as one."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.tracking.console import ConsoleTracker
from rlhf_cli.tracking.jsonl import JsonlTracker
from rlhf_cli.tracking.protocol import Tracker
from rlhf_cli.tracking.wandb_tracker import WandbTracker


class Trackers:
    """Passes everything on to each of `trackers`, in order; itself a `Tracker`."""

    def __init__(self, trackers: Iterable[Tracker], wandb_run_id: str | None = None) -> None:
        self._trackers = list(trackers)
        self.wandb_run_id = wandb_run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        for tracker in self._trackers:
            tracker.samples(step, rows)

    def message(self, text: str) -> None:
        for tracker in self._trackers:
            tracker.message(text)

    def alert(self, title: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.alert(title, text)

    def finish(self, state: str) -> None:
        """Finish every one, also where another fails to."""
        with ExitStack() as stack:
            for tracker in reversed(self._trackers):
                stack.callback(tracker.finish, state)


def make_trackers(
    kind: Literal["wandb", "offline", "none", "silent"],
    folder: Path,
    config: dict[str, Any],
    *,
    steps: int,
    resume_step: int | None,
    project: str,
    entity: str | None,
    name: str | None,
    group: str | None,
    run_id: str | None,
) -> Trackers:
    """JSONL first (it is the truth), the console, and W&B unless `kind` is "none".

    `resume_step` is the checkpoint's step that the run goes on from, None for a fresh run; `run_id` the W&B run
    that it continues. The W&B id for the next checkpoint is the result's `wandb_run_id`.
    """
    if kind == "silent":  # of several processes only the first writes
        return Trackers([], run_id)
    jsonl = JsonlTracker(folder, resume_step)
    console = ConsoleTracker(steps, start_step=resume_step or 0)
    if kind == "none":
        # An earlier run's id is kept: a later resume with W&B continues the same curve.
        return Trackers([jsonl, console], run_id)
    mirror = WandbTracker(
        folder,
        config,
        project=project,
        entity=entity,
        name=name,
        group=group,
        mode=kind,
        run_id=run_id,
        resume=run_id is not None,
        notify=console.message,
    )
    return Trackers([jsonl, console, mirror], mirror.run_id)
