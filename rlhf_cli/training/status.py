"""`status.json`: what a run folder says of its run; and how a run that was told to stop says so."""

import json
import os
import time
from pathlib import Path
from typing import Any


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was saved."""

    def __init__(self, signal: str) -> None:
        super().__init__(f"interrupted by {signal}")
        self.signal = signal


def write_atomic(path: Path, text: str) -> None:
    """Whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_status(folder: Path, state: str, *, step: int, steps: int, error: str | None = None) -> None:
    """state: running | done | failed | interrupted."""
    status = {
        "state": state,
        "step": step,
        "steps": steps,
        "error": error,
        "pid": os.getpid(),
        "heartbeat": time.time(),
    }
    write_atomic(folder / "status.json", json.dumps(status, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """The status, or {} where there is none to read."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def mark_reported(error: BaseException) -> None:
    error.__dict__["reported_by_rlhf"] = True


def reported(error: BaseException) -> bool:
    """Whether the error's traceback was already shown in its own run."""
    return bool(error.__dict__.get("reported_by_rlhf"))
