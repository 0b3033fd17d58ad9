"""rlhf reward-train"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float:
    """Train a reward model on ranked responses; leaves reward_model/, metrics.jsonl and calibration.json."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle

    hydra = HydraConfig.get()
    config = settle("reward-train", cfg, list(hydra.overrides.task))
    return train(config, Path(hydra.runtime.output_dir))


def train(config: Any, folder: Path) -> float:
    import torch
    import yaml
    from rich.progress import track

    from rlhf_cli.config.errors import UserError
    from rlhf_cli.rewards.learned import LearnedReward
    from rlhf_cli.rewards.ranked import read_ranked
    from rlhf_cli.training.reward_model import examine, fit, synthesise
    from rlhf_cli.training.run import first_line
    from rlhf_cli.training.setup import compute, make_lab, model_path
    from rlhf_cli.training.status import write_atomic, write_status

    def notify(text: str) -> None:
        print(text, flush=True)

    notify(first_line(config))
    wanted, where = config.reward_train, compute(config)
    if wanted.data:
        groups = read_ranked(wanted.data)
    else:
        without_critic = config.algo.model_copy(update={"advantage": "returns", "baseline": "none"})
        lab = make_lab(config.model_copy(update={"algo": without_critic}), notify)
        groups = synthesise(lab, prompts=wanted.prompts, responses=wanted.responses, notify=notify)
        del lab
    held = max(1, round(wanted.held_out * len(groups)))
    test, training = groups[:held], groups[held:]
    if not training:
        raise UserError(f"{len(groups)} ranked groups are too few: some must be held out (reward_train.held_out)")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yaml", yaml.safe_dump(config.model_dump(by_alias=True), sort_keys=False))
    start = wanted.start or model_path(config.reward, config, notify)
    reward = LearnedReward(start, device=where.device, batch_size=64, dtype=torch.float32, new_head=True)
    rows: list[dict[str, float]] = [{"step": 0, **examine(reward, test)[0]}]
    steps = wanted.epochs * -(-len(training) // wanted.batch)
    write_status(folder, "running", step=0, steps=steps)
    bar = iter(track(range(steps), description="reward model"))

    def tick(metrics: dict[str, float]) -> None:
        next(bar, None)
        rows.append(metrics)

    fit(reward, training, epochs=wanted.epochs, batch=wanted.batch, lr=wanted.lr, seed=config.seed, tick=tick)
    next(bar, None)
    metrics, calibration = examine(reward, test)
    rows[-1] |= metrics
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(folder / "calibration.json", json.dumps(calibration, indent=1) + "\n")
    reward.save(folder / "reward_model", mean=metrics["val/reward_mean"], std=max(1e-6, metrics["val/reward_std"]))
    write_status(folder, "done", step=steps, steps=steps)
    _print(len(training), len(test), rows[0], metrics, calibration)
    notify(f"use it: rlhf train reward=learned reward.path={folder / 'reward_model'}")
    return metrics["val/pairwise_accuracy"]


def _print(training: int, held: int, before: dict[str, float], after: dict[str, float], bins: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("on held-out prompts", "before", "after", title=f"reward model: {training} prompts, {held} held out")
    for name in ("val/pairwise_accuracy", "val/pairwise_loss", "val/calibration_error"):
        table.add_row(name.removeprefix("val/"), f"{before[name]:.3f}", f"{after[name]:.3f}")
    console = Console()
    console.print(table)
    shown = Table("sure of itself", "right", "pairs", title="calibration")
    for row in bins:
        shown.add_row(f"{row['predicted']:.2f}", f"{row['observed']:.2f}", str(row["n"]))
    console.print(shown)
