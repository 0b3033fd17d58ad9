"""The runs below some folders, each as a line: what `rlhf runs` shows."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config.compose import saved_config
from rlhf_cli.config.errors import UserError
from rlhf_cli.runs.folder import last_metrics
from rlhf_cli.runs.status import alive, read_status

FIGURES = {"score": "val/score", "gold": "val/gold_score", "kl": "val/kl", "hacking": "hacking/index"}


def catalogue(places: Iterable[str]) -> list[dict[str, Any]]:
    """Every run below these folders. Raises UserError for a folder that is not there."""
    found: dict[Path, dict[str, Any]] = {}
    for place in places:
        root = Path(place).expanduser()
        if not root.is_dir():
            raise UserError(f"{place}: there is no such folder")
        found |= {folder.resolve(): line for folder in run_folders(root) if (line := described(folder))}
    return list(found.values())


def run_folders(root: Path) -> Iterator[Path]:
    """Folders that hold a run's status; checkpoints and what a tracker keeps are not looked into."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(set(inside) - {"checkpoints", "wandb", "tensorboard", "mlflow", "figures"})
        if "status.json" in files and "config.yaml" in files:
            yield Path(folder)


def described(folder: Path) -> dict[str, Any] | None:
    """One run; None for what trained no policy, or cannot be read."""
    try:
        config = saved_config(folder)
        title = config.get("name") or default_name(config)
    except (UserError, LookupError, TypeError):
        return None
    status, metrics = read_status(folder), last_metrics(folder)
    state = status.get("state", "unknown")
    if state == "running" and not alive(status) and status.get("pid") != os.getpid():
        state = "dead"
    return {
        "folder": str(folder),
        "name": title,
        "state": state,
        "step": status.get("step", 0),
        "steps": status.get("steps", 0),
        **{short: metrics.get(metric) for short, metric in FIGURES.items()},
        "age_s": time.time() - status.get("heartbeat", time.time()),
        "tags": list(config.get("tags") or []),
        "notes": config.get("notes") or "",
        "from": config.get("from"),
        "error": status.get("error"),
    }


def default_name(config: dict[str, Any]) -> str:
    """`ppo roberta_large qwen_base seed 0`: algorithm, reward, actor, seed."""
    actor, reward = (
        Path(config[group]["path"]).name if config[group].get("path") else config[group]["name"]
        for group in ("actor", "reward")
    )
    return f"{config['algo']['name']} {reward} {actor} seed {config['seed']}"


def chosen(runs: list[dict[str, Any]], *, sort: str, state: str | None, tag: str | None) -> list[dict[str, Any]]:
    """Those of this state and tag, the newest (or the highest) first; what lacks the figure comes last."""
    kept = [run for run in runs if (not state or run["state"] == state) and (not tag or tag in run["tags"])]
    match sort:
        case "age":
            return sorted(kept, key=lambda run: float(run["age_s"]))
        case "name":
            return sorted(kept, key=lambda run: str(run["name"]))
    key = "step" if sort == "steps" else sort
    return sorted(kept, key=lambda run: -run[key] if run[key] is not None else float("inf"))
