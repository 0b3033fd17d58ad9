"""Wall-clock seconds by phase: `clock` collects them, and each `phase` adds to the innermost open clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.profiler import record_function

_open: ContextVar[dict[str, float] | None] = ContextVar("clock", default=None)


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """{"time/<phase>_s": seconds} of the phases inside."""
    seconds: dict[str, float] = {}
    token = _open.set(seconds)
    try:
        yield seconds
    finally:
        _open.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time the block, or the decorated function, under this name."""
    start = time.perf_counter()
    with record_function(name):  # so that it stands in a profile as well
        yield
    if (seconds := _open.get()) is not None:
        key = f"time/{name}_s"
        seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start
