"""A step looked into: torch's profiler (`profile_step`), and the operation that gives a NaN (`detect_anomaly`)."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlhf_cli.engine.finite import NonFinite

ROWS = 25
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)')
BORN = re.compile(r"Function '(\w+)' returned nan values")


@contextmanager
def profiled(wanted: bool, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Leave `trace.json.gz` (for chrome://tracing or Perfetto) and `operations.txt` in `folder`, and say the first rows
    of the second: operations by the time that they took themselves, on the GPU where there is one. The phases of
    `training/clock.py` stand among them."""
    if not wanted:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports on itself
    there = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if there else [])]
    with profile(activities=kinds, acc_events=True) as seen:
        yield
    folder.mkdir(parents=True, exist_ok=True)
    by = "self_device_time_total" if there else "self_cpu_time_total"
    averages = seen.key_averages()
    seen.export_chrome_trace(str(folder / "trace.json.gz"))
    (folder / "operations.txt").write_text(
        averages.table(sort_by=by, row_limit=100, max_name_column_width=60), encoding="utf-8"
    )
    say(f"profile: {folder}/trace.json.gz (chrome://tracing), {folder}/operations.txt; it begins so:")
    for line in longest([(e.key, getattr(e, by) / 1e3, e.count) for e in averages]):
        say(line)


def longest(operations: list[tuple[str, float, int]], rows: int = ROWS) -> list[str]:
    """Lines of a table of (name, milliseconds, calls), those that took longest first."""
    total = sum(ms for _, ms, _ in operations) or 1.0
    first = sorted(operations, key=lambda each: -each[1])[:rows]
    lines = [f"{_short(name):48} {ms:9.1f} {ms / total:6.1%} {calls:7}" for name, ms, calls in first]
    return [f"{'operation':48} {'ms':>9} {'share':>6} {'calls':>7}", *lines]


def _short(name: str) -> str:
    """Without its middle where it is long: kernels' names differ at their ends."""
    return name if len(name) <= 48 else f"{name[:23]}…{name[-24:]}"


@contextmanager
def anomalies(wanted: bool) -> Iterator[None]:
    """Raise NonFinite with the operation whose backward pass gave a NaN, and the line that computed it."""
    if not wanted:
        yield
        return
    with warnings.catch_warnings(record=True) as told, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            yield
        except RuntimeError as error:
            if not (born := BORN.search(str(error))):
                raise
            what = f"the gradient that {born[1]} gave{_where([str(each.message) for each in told])} is"
            raise NonFinite(what, **vars(error).get("evidence", {})) from error


def _where(told: list[str]) -> str:
    """Of torch's warning, which has the whole way to the forward operation: the last step on it that is not torch's."""
    frames = [found for text in told for found in FRAME.findall(text) if "/torch/" not in found[0]]
    if not frames:
        return ""
    file, line, function, code = frames[-1]
    return f" (of {'/'.join(Path(file).parts[-3:])}:{line} {function}: {code.strip()})"
