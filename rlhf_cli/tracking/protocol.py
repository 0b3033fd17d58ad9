"""The interface of a tracker."""

from typing import Any, Protocol


class Tracker(Protocol):
    """Where a run's numbers and samples go. For one step, `samples` (if any) comes before `log`."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step's metrics; called once a step, steps ascending."""

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Record validation samples: {"prompt", "prefix", "response", "class", "score", "parts": {…}}."""

    def message(self, text: str) -> None:
        """Show one line to the user."""

    def alert(self, title: str, text: str) -> None:
        """Notify the user, who may not be watching."""

    def finish(self, state: str) -> None:
        """Close the record; `state` is "done", "failed" or "interrupted"."""
