"""A tracker that cannot stop a run: its first error ends it, with one line."""

from collections.abc import Callable
from typing import Any

from rlhf_cli.tracking.protocol import Tracker
from rlhf_cli.tracking.wandb_tracker import reason


class Guarded:
    """The tracker that `make` returns, as long as it works.

    `label` is what the line through `notify` calls it. A package that is not installed says which extra brings it.
    """

    def __init__(self, label: str, make: Callable[[], Tracker], notify: Callable[[str], None]) -> None:
        self._label, self._notify = label, notify
        self._tracker: Tracker | None = None
        try:
            self._tracker = make()
        except ImportError as error:
            self._off(f"{reason(error)}: pip install 'rlhf[{label.lower()}]'")
        except Exception as error:
            self._off(reason(error))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._do(lambda tracker: tracker.log(step, metrics))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._do(lambda tracker: tracker.samples(step, rows))

    def message(self, text: str) -> None:
        """Messages are for the console."""

    def alert(self, title: str, text: str) -> None:
        self._do(lambda tracker: tracker.alert(title, text))

    def finish(self, state: str) -> None:
        self._do(lambda tracker: tracker.finish(state))

    def _do(self, action: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:
            self._tracker = None
            self._off(reason(error))

    def _off(self, why: str) -> None:
        self._notify(f"{self._label} is off ({why}); metrics.jsonl holds everything")
