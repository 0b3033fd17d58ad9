"""Tiny training runs through the command line, and what they logged."""

from pathlib import Path
from typing import Any

from rlhf_cli.cli import dispatch
from rlhf_cli.tracking.jsonl import read_jsonl

SMALL = [
    "scale=mini", "tracking=none", "steps=3", "data.train=30", "data.test=12", "data.labeler=vader", "val.prompts=6",
    "val.every=2", "checkpoint.every=1", "rollout.batch_size=8", "rollout.max_response_length=8",
    "optim.micro_batch_size=4",
]  # fmt: skip
TIMINGS = ("time/", "throughput/", "memory/")


def train(folder: Path, *overrides: str) -> int:
    """The exit code of a run of three steps."""
    return dispatch(["train", *SMALL, f"hydra.run.dir={folder}", *overrides])


def numbers(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock and the memory say."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]
