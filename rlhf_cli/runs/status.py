"""`status.json`: what a run folder says of its run; and how a run that was told to stop says so."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Interrupted(BaseException):
    """A signal asked the run to stop; a checkpoint was saved, if there was anything to save.

    Not an Exception: on its way up nobody may take it for a broken model file, nor a launcher for one job's failure.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(f"interrupted by {signal}")
        self.signal = signal


@contextmanager
def concluded(finish: Callable[[str], None]) -> Iterator[None]:
    """`finish` is told how what is inside ended: done, interrupted or failed."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except Interrupted:
        outcome = "interrupted"
        raise
    finally:
        finish(outcome)


def write_atomic(path: Path, text: str) -> None:
    """Whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_status(
    folder: Path, state: str, *, step: int, steps: int, error: str | None = None, reason: str | None = None
) -> None:
    """state: running | done | failed | interrupted. `seconds`: how long the run has run, pauses left out;
    `reason`: why it is done before its last step."""
    before, now = read_status(folder), time.time()
    seconds = before.get("seconds", 0.0)
    if before.get("state") == "running" and before.get("pid") == os.getpid():
        seconds += now - before["heartbeat"]
    status = {
        "state": state,
        "step": step,
        "steps": steps,
        "error": error,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "heartbeat": now,
        "seconds": seconds,
    }
    if reason is not None:
        status["reason"] = reason
    text = json.dumps(status, indent=1) + "\n"
    try:
        write_atomic(folder / "status.json", text)
    except OSError:  # a full disk may still have the room that the old one takes
        if state == "running":
            raise
        (folder / "status.json").write_text(text, encoding="utf-8")


def read_status(folder: Path) -> dict[str, Any]:
    """The status, or {} where there is none to read."""
    try:
        return json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


SILENCE = 900.0
"""Seconds without a heartbeat after which a run on another machine counts as dead."""


def alive(status: dict[str, Any]) -> bool:
    """Whether the run that wrote this status still runs: its process is there, or, on another machine, was lately."""
    if status.get("state") != "running" or status["pid"] == os.getpid():
        return False
    if not here(status):
        return time.time() - status["heartbeat"] < SILENCE
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _zombie(status["pid"])


def here(status: dict[str, Any]) -> bool:
    """Whether it was written on this machine."""
    return bool(status.get("host") == socket.gethostname())


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def mark_reported(error: BaseException) -> None:
    error.__dict__["reported_by_rlhf"] = True


def reported(error: BaseException) -> bool:
    """Whether the error's traceback was already shown in its own run."""
    return bool(error.__dict__.get("reported_by_rlhf"))
