"""Memory of this process: its peak, and what to do when it runs out."""

import gc
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from rlhf_cli.config.errors import RunFailed

T = TypeVar("T")


def peak_mb(device: torch.device) -> float:
    """MB: allocated on a CUDA device, else the resident set (ru_maxrss is in kB on Linux, bytes on macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def free_bytes(device: torch.device) -> int:
    """That this process may still take: of a CUDA device, else of the machine's memory (Linux's MemAvailable; elsewhere
    half of what is built in)."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


_spare: list[Callable[[], None]] = []


def at_shortage(give_up: Callable[[], None]) -> None:
    """Something to call where memory runs out: it drops what can be made again."""
    _spare.append(give_up)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the machine's memory ran out: torch names only the device's by type."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    text = str(error)
    return named or (
        isinstance(error, RuntimeError)
        and any(
            sign in text for sign in ("DefaultCPUAllocator: ", "not enough memory", "out of memory", "_ALLOC_FAILED")
        )
    )


def make_room() -> None:
    """Drop what can be made again, and hand freed memory back to the device."""
    for give_up in _spare:
        give_up()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Memory:
    """How many rows at a time were found to fit, by the kind of work; kept for the rest of the run."""

    notify: Callable[[str], None] = print
    fits: dict[str, int] = field(default_factory=dict)

    def fit(self, kind: str, wanted: int, work: Callable[[int], T]) -> T:
        """`work(rows)` with `wanted` rows at a time, or with half as many, and again, where memory runs out.

        `work` must give the same for any number of rows, and must be free to start over. Raises what it raises, and
        RunFailed where not even one row fits.
        """
        while True:
            rows = min(wanted, self.fits.get(kind, wanted))
            try:
                return work(rows)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if rows == 1:
                    raise RunFailed(
                        f"out of memory in {kind} with one row at a time: lower rollout.max_response_length, set "
                        "optim.gradient_checkpointing=true, or take a smaller model"
                    ) from error
            # only here is the failed attempt, and what it held, gone
            self.fits[kind] = rows // 2
            make_room()
            self.notify(f"out of memory in {kind}: {rows} → {rows // 2} rows at a time; the result stays the same")
