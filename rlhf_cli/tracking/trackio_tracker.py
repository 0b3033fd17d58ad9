"""Trackio: Hugging Face's tracker on one's own machine, read with `trackio show`."""

import math
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from rlhf_cli.tracking.wandb_tracker import without_secrets


class TrackioTracker:
    """A run of the Trackio project `project`, where Trackio keeps its own (TRACKIO_DIR)."""

    def __init__(self, config: dict[str, Any], *, project: str, name: str | None, group: str | None) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(StringIO()):  # it says how to look at a run, each time and in colour
            self._run = trackio.init(
                project=project,
                name=name,
                group=group,
                config=without_secrets(config),
                resume="allow",
                auto_log_gpu=False,
                embed=False,
            )
        self._held: dict[str, Any] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._run.log(finite | self._held, step=step)
        self._held = {}

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Held for the step's `log`: Trackio takes one row a step."""
        import pandas

        columns = {"input": "prompt", "output": "response", "score": "score", "class": "class"}
        frame = pandas.DataFrame([{name: row[key] for name, key in columns.items()} for row in rows])
        self._held = {"samples": self._trackio.Table(dataframe=frame)}

    def message(self, text: str) -> None:
        """Messages are for the console."""

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text)

    def finish(self, state: str) -> None:
        with redirect_stdout(StringIO()):
            self._trackio.finish()
