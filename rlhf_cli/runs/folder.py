"""A run's folder: which run it belongs to, what it records, which checkpoint a run resumes from."""

import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rlhf_cli import __version__
from rlhf_cli.config.errors import RunFailed, UserError
from rlhf_cli.config.schema import Config, RewardTrainConfig
from rlhf_cli.runs.checkpoint import all_of, disk_full, newest, step_of
from rlhf_cli.runs.lock import only_process
from rlhf_cli.runs.status import Interrupted, mark_reported, read_status, reported, write_atomic, write_status
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.tracking.text import harmless, shell


@contextmanager
def begun(config: Config, folder: Path, *, steps: int) -> Iterator[Path | None]:
    """Lock the folder for this process, and record how the run ends; yields the checkpoint to resume from."""
    with only_process(folder):
        checkpoint = begin(config, folder, steps=steps)
        with recorded(folder):
            yield checkpoint


def begin(config: Config, folder: Path, *, steps: int) -> Path | None:
    """Claim the folder for a run; returns the checkpoint to resume from. Raises UserError if it holds another run."""
    checkpoint = _claim(config, folder)
    write_atomic(folder / "config.yaml", yaml.safe_dump(config.model_dump(by_alias=True), sort_keys=False))
    write_atomic(folder / "environment.json", json.dumps(machine(), indent=1) + "\n")
    write_status(folder, "running", step=step_of(checkpoint) if checkpoint else 0, steps=steps)
    return checkpoint


def machine() -> dict[str, str]:
    """Versions and hardware, for the report."""
    import torch

    versions = {"rlhf": __version__} | {name: version(name) for name in ("torch", "transformers")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    system = f"{platform.system()} {platform.machine()}"
    about = {"python": platform.python_version(), **versions, "system": system, "cores": str(os.cpu_count()), **gpu}
    return about | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str:
    """Of this project's checkout, with a + behind it where files differ from it; empty where there is none."""
    home = Path(__file__).parents[2]
    git = ["git", "-C", str(home), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        if (home / ".git").exists():
            return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return ""


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """status.json says how the run in this folder ended, and error.log why, before the exception goes on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        _note(folder, "interrupted", None)
        raise
    except Exception as failure:
        error = _disk_full(failure, folder) or failure
        _note(folder, "failed", str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}")
        if isinstance(error, RunFailed):
            print(f"rlhf: {harmless(str(error))}", file=sys.stderr, flush=True)
            mark_reported(error)
        elif not isinstance(error, UserError) and not reported(error):
            (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            traceback.print_exc()
            mark_reported(error)
        raise error from (None if error is failure else failure)


def _disk_full(failure: Exception, folder: Path) -> RunFailed | None:
    if not disk_full(failure):
        return None
    kept = newest(folder, print)
    again = f"rlhf train resume={shell(folder)}"
    rest = f"{kept} is whole: make room, then {again}" if kept else "no checkpoint was saved before"
    return RunFailed(f"the disk is full ({failure}). {rest}")


def _note(folder: Path, state: str, error: str | None) -> None:
    before = read_status(folder)
    write_status(folder, state, step=before.get("step", 0), steps=before.get("steps", 0), error=error)


def _claim(config: Config, folder: Path) -> Path | None:
    """The checkpoint to resume from, None for a new run; refuses a folder that holds another run."""
    from rlhf_cli.config.compose import changed, saved_config

    empty = not (folder / "metrics.jsonl").exists() and not all_of(folder)
    never_began = read_status(folder).get("state") == "failed" and empty
    holds_run = (folder / "config.yaml").exists() and not never_began
    if config.resume is None:
        if holds_run:
            go_on = (
                ""
                if isinstance(config, RewardTrainConfig)
                else f"go on with it (rlhf train resume={shell(folder)}) or "
            )
            raise UserError(f"{folder} already holds a run: {go_on}choose another hydra.run.dir=")
        return None
    if config.resume == "auto" and holds_run and (differs := changed(saved_config(folder), config)):
        listed = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in differs.items())
        raise UserError(f"resume=auto: {folder} holds a run with another config:\n{listed}")
    found = newest(folder, print) if holds_run else None
    if found is None and holds_run:
        print(f"{folder} has no whole checkpoint: it starts anew")
    return found


def check_record(folder: Path, step: int, notify: Callable[[str], None]) -> None:
    """Raise UserError where a run's record cannot be read; say what it lacks of the steps up to the checkpoint's."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        try:
            rows = read_jsonl(folder / name)
            last = max((int(row["step"]) for row in rows), default=-1)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / name} is damaged: {error}. Mend or remove it, then resume again") from None
        if last < 0 or (name == "metrics.jsonl" and last < step):
            notify(f"{name} has lost steps up to {step}: the record has a gap there")


def first_line(config: Config) -> str:
    """What every run says first: the scale, and where the weights come from."""
    source = config.data.source
    made_of = "that ship with rlhf" if source in ("generated", "imdb") else f"of {source}"
    why = f"miniatures {made_of}, a simulation" if config.scale == "mini" else "models from the hub"
    if config.weights:
        why = "; ".join(f"{group}: {origin}" for group, origin in config.weights.items()) + f"; reviews: {source}"
    reward = config.reward.fn or config.reward.path or config.reward.name
    algo = config.algo.name + (f", loss {config.algo.loss}" if config.algo.loss else "")
    return (
        f"scale={config.scale} ({why}) · {algo} · actor {config.actor.path or config.actor.name} · "
        f"reward {reward} · {config.data.name} · seed {config.seed}"
    )


def last_metrics(folder: Path) -> dict[str, Any]:
    """Every metric's last value in a run's metrics.jsonl."""
    latest: dict[str, Any] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            latest |= json.loads(line)
        except ValueError:
            break
    return latest
