"""One process a run folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.config.errors import UserError


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process; the kernel releases it however the process ends.

    Raises UserError where another process holds it. Of several processes that train together only the first asks.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder}: {holder} is at work in this run folder: wait for it, stop it, or choose another "
                "hydra.run.dir="
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
