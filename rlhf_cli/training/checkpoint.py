"""Checkpoints: plain Hugging Face folders beside the trainer's state, whole or not there at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.training.setup import Lab
from rlhf_cli.training.state import State
from rlhf_cli.training.status import write_atomic

MANIFEST = "manifest.json"


def save_checkpoint(run: Path, step: int, lab: Lab, state: State, extra: dict[str, Any]) -> Path:
    """Write checkpoints/step_000120 (temporary name, manifest, fsync, rename), then `checkpoints/last`."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    temporary = folder.with_name(f".tmp_{folder.name}")
    for left_by_a_killed_run in folder.parent.glob(".tmp_*"):
        shutil.rmtree(left_by_a_killed_run)
    temporary.mkdir(parents=True)
    lab.actor.save_pretrained(temporary / "actor")
    lab.tokenizer.save_pretrained(temporary / "actor")
    if lab.critic is not None:
        lab.critic.save_pretrained(temporary / "critic")
    if lab.config.algo.steps_per_iteration:
        lab.reference.save_pretrained(temporary / "reference")
    if lab.continual:
        lab.continual.save(temporary)
    torch.save(state.trainer(), temporary / "trainer.pt")
    (temporary / "state.json").write_text(json.dumps({"step": step, **extra}))
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): _identity(path) for path in files}
    write_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1))
    for path in (temporary, *temporary.rglob("*")):
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    _sync(folder.parent)
    write_atomic(folder.parent / "last", folder.name + "\n")
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there, with its size and hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest) and all(_identity(folder / name) == known for name, known in manifest.items())
    except (OSError, ValueError):
        return False


def newest(run: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; torn ones are passed over with a message."""
    for folder in sorted((run / "checkpoints").glob("step_*"), reverse=True):
        if is_whole(folder):
            return folder
        notify(f"{folder.name} is torn or incomplete: the checkpoint before it is used")
    return None


def step_of(checkpoint: Path) -> int:
    """120 for checkpoints/step_000120"""
    return int(checkpoint.name.removeprefix("step_"))


def find_checkpoint(place: str, notify: Callable[[str], None]) -> Path:
    """A checkpoint folder, from itself or from its run folder (then the newest)."""
    folder = Path(place).expanduser()
    if folder.name == "actor" and (folder / "config.json").is_file():
        folder = folder.parent
    if (folder / "actor").is_dir():
        if (folder / MANIFEST).exists() and not is_whole(folder):
            raise UserError(f"checkpoint={place} is torn: its files are not those that were saved; give another one")
        return folder
    found = newest(folder, notify)
    if found is None:
        raise UserError(f"checkpoint={place}: no whole checkpoint is there")
    return found


def load_trainer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainer state, {"step", …}); weights-only loading: no code runs."""
    trainer = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    return trainer, json.loads((folder / "state.json").read_text())


def _identity(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
