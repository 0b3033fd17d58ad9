"""Signals ask a run to stop; it stops where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_cli.training.status import Interrupted


class StopRequest:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.at_once = False
        """Nothing is worth saving yet: stop where it stands."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask to stop after the step; a second SIGINT stops at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: Any) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name
        if request.at_once:
            raise Interrupted(request.signal)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
