"""A worker's side of the alternation: wait for the driver's word, take one step, say what it took."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STARTED = time.perf_counter()


class Turns:
    """Steps on demand over stdin and stdout; `phase` adds up seconds by name within a step."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.begun = self.begun_cpu = 0.0
        self.talk = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever libraries print goes to stderr

    def say(self, **message: Any) -> None:
        self.talk.write(json.dumps(message) + "\n")
        self.talk.flush()

    def wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.phases.clear()
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def done(self, tokens: int) -> None:
        sync()
        seconds = time.perf_counter() - self.begun
        cpu = time.process_time() - self.begun_cpu
        rest = seconds - sum(self.phases.values())
        self.say(seconds=seconds, cpu=cpu, tokens=tokens, peak_mb=peak_mb(), phases={**self.phases, "update": rest})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        sync()
        start = time.perf_counter()
        yield
        sync()
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return inner


def sync() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb() -> float:
    """The most memory this process held: on a GPU there, else its resident set."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
