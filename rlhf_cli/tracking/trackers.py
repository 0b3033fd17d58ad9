"""The trackers of a run, as one."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.tracking.console import ConsoleTracker
from rlhf_cli.tracking.guarded import Guarded
from rlhf_cli.tracking.jsonl import JsonlTracker
from rlhf_cli.tracking.mlflow_tracker import MlflowTracker
from rlhf_cli.tracking.protocol import Tracker
from rlhf_cli.tracking.tensorboard_tracker import TensorboardTracker
from rlhf_cli.tracking.trackio_tracker import TrackioTracker
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
    names: Sequence[str] | None,
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
    tags: Sequence[str] = (),
    notes: str = "",
) -> Trackers:
    """JSONL first (it is the truth), the console, and those of `names`; None: nothing is written, as it is by the
    other processes of a run.

    `resume_step` is the checkpoint's step that the run goes on from, None for a fresh run; `run_id` the W&B run
    that it continues. The W&B id for the next checkpoint is the result's `wandb_run_id`.
    """
    if names is None:
        return Trackers([], run_id)
    jsonl = JsonlTracker(folder, resume_step)
    console = ConsoleTracker(steps, start_step=resume_step or 0)
    every: list[Tracker] = [jsonl, console]
    # Without W&B an earlier run's id is kept: a later resume with it continues the same curve.
    for kind in names:
        match kind:
            case "wandb" | "offline":
                mirror = WandbTracker(
                    folder,
                    config,
                    project=project,
                    entity=entity,
                    name=name,
                    group=group,
                    tags=tags,
                    notes=notes,
                    mode=kind,
                    run_id=run_id,
                    resume=run_id is not None,
                    notify=console.message,
                )
                every.append(mirror)
                run_id = mirror.run_id
            case "tensorboard":
                make = partial(TensorboardTracker, folder, config, resume_step=resume_step)
                every.append(Guarded("TensorBoard", make, console.message))
            case "trackio":
                of_trackio = partial(TrackioTracker, config, project=project, name=name, group=group)
                every.append(Guarded("Trackio", of_trackio, console.message))
            case "mlflow":
                of_mlflow = partial(MlflowTracker, folder, config, project=project, name=name, group=group)
                every.append(Guarded("MLflow", of_mlflow, console.message))
    return Trackers(every, run_id)
