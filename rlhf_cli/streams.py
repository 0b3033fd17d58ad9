"""A reader that goes away (`rlhf train | head`, a terminal that is closed, a log on a full disk) does not end the work:
what is printed from then on goes nowhere. The run's own files have it all."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Outliving(io.FileIO):
    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def processes_started() -> int:
    """How many torchrun started; 1 where it is not its doing. Asked before torch is imported."""
    told = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(told)) if told.isdecimal() else 1


def outlive_readers() -> None:
    """Make this process's standard output and error go on without a reader."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(AttributeError, OSError, ValueError):  # none, closed, or not a file's
            stream.flush()
            out = io.BufferedWriter(_Outliving(stream.fileno(), "w", closefd=False))
            lines = stream.line_buffering
            # a terminal that knows no "·" gets a "?"
            setattr(sys, name, io.TextIOWrapper(out, stream.encoding, "replace", line_buffering=lines))
