"""Signals ask a run to stop; it stops after a checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_cli.runs.status import Interrupted


class StopRequest:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, nothing is worth saving yet: a signal, also an earlier one, stops the run where it stands."""
        self._at_once = True
        try:
            self.heed()
            yield
        finally:
            self._at_once = False

    def heed(self) -> None:
        """Raises Interrupted if a signal has come and nothing is worth saving."""
        if self.signal and self._at_once:
            raise Interrupted(self.signal)


_late: list[str] = []


def late_signal() -> str | None:
    """The signal that came when the last run was all but over, so that it ended as if none had; told once."""
    return _late.pop() if _late else None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP (a closed terminal; not under nohup) ask to stop after the step; a
    second SIGINT stops at once.

    Around whatever records how a run ended: torchrun ends the processes that another's death has just made fail.
    """
    request = StopRequest()
    _late.clear()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: Any) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name
        request.heed()
        if os.environ.get("RANK", "0") == "0":  # print may not be called while it is at work
            again = "; Ctrl-C again: at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{request.signal}: it ends after this step{again}\n".encode())

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
        _late.extend([request.signal] if request.signal else [])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
