"""metrics.jsonl and samples.jsonl: the truth about a run, which W&B mirrors."""

import json
import math
import os
from pathlib import Path
from typing import Any


class JsonlTracker:
    """Appends to `metrics.jsonl` and `samples.jsonl` in `folder`, one line an object, on the disk when `log` returns.

    A fresh run (`resume_step` None) starts both files anew; a resumed one first drops what was written after
    the checkpoint of `resume_step`, because those steps will run again.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "metrics.jsonl", folder / "samples.jsonl"
        for path in paths:
            keep_until(path, -1 if resume_step is None else resume_step)
        self._metrics, self._samples = (path.open("a", encoding="utf-8") for path in paths)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._metrics.write(as_line({"step": step} | metrics))
        for file in (self._metrics, self._samples):
            file.flush()
            os.fsync(file.fileno())

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._samples.write(as_line({"step": step} | row))
        self._samples.flush()

    def message(self, text: str) -> None:
        """Messages are for people, not for the record."""

    def alert(self, title: str, text: str) -> None:
        """The numbers behind it are in the record."""

    def finish(self, state: str) -> None:
        self._metrics.close()
        self._samples.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every object of a JSON-lines file, [] if there is none; a torn last line (a killed writer) is left out.

    Raises ValueError, which names the line, where any other line is broken.
    """
    if not path.exists():
        return []
    # Not splitlines(): other programs' files may hold U+2028 and the like inside a string.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a torn last one; a crash in between leaves the old file whole."""
    if not path.exists():
        return
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        # Nothing is kept of a file that starts anew, so a broken one need not be read.
        file.writelines(as_line(row) for row in (read_jsonl(path) if step >= 0 else []) if row["step"] <= step)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename, too, must survive a power cut
    finally:
        os.close(handle)


def as_line(row: dict[str, Any]) -> str:
    """One line of valid, ASCII-only JSON: NaN and infinities become null."""
    return json.dumps(_plain(row), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | str() | bool() | int():
            return value
    number = float(value)  # floats, and the scalars of torch and numpy
    return number if math.isfinite(number) else None
