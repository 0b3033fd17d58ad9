"""rlhf frontier"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Sample the untrained policy, draw what it could have reached and what the runs did; writes frontier.json."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.commands.eval import judged_experiment
    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.config.folders import check_writable
    from rlhf_cli.evaluation.frontier import best_of_n, optimal, plain
    from rlhf_cli.report.frontier_chart import draw
    from rlhf_cli.runs.folder import first_line
    from rlhf_cli.runs.status import write_atomic

    hydra = HydraConfig.get()
    config = settle("frontier", cfg, list(hydra.overrides.task))
    if not config.runs:
        raise UserError("runs=[]: give the folders of runs: rlhf frontier outputs/2026-01-31/12-00-00_train")
    out = Path(config.out or hydra.runtime.output_dir).expanduser()
    check_writable(str(out), "out")
    checkpoints = [row for folder in config.runs for row in validations(Path(folder).expanduser())]
    judged, _ = judged_experiment(config, first_line(config))
    rewards, gold = sampled(judged, config)
    wanted = config.frontier
    told: dict[str, Any] = {
        "best_of_n": plain(best_of_n(rewards, gold, wanted.n)),
        "optimal": plain(optimal(rewards, gold, wanted.betas)),
        "checkpoints": checkpoints,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "frontier.json", json.dumps(told, indent=1) + "\n")
    draw(told, out / "frontier.png")
    show(told)
    print(f"written: {out / 'frontier.json'} and {out / 'frontier.png'}")


def validations(folder: Path) -> list[dict[str, Any]]:
    """Every validation of a run: its step, KL, reward and gold score."""
    from rlhf_cli.config.compose import run_folder
    from rlhf_cli.tracking.jsonl import read_jsonl

    home = run_folder(str(folder))
    rows = [row for row in read_jsonl(home / "metrics.jsonl") if "val/score" in row and "val/kl" in row]
    return [
        {
            "run": home.name,
            "step": row["step"],
            "kl": row["val/kl"],
            "reward": row["val/score"],
            "gold": row.get("val/gold_score"),
        }
        for row in rows
    ]


def sampled(judged: Any, config: Any) -> tuple[Any, Any]:
    """(rewards, gold scores or None) of the untrained policy's responses, each [prompts, samples]."""
    import torch

    from rlhf_cli.training.rollouts import generate, score

    prompts, count = judged.test, config.frontier.samples
    policy = judged.policy.with_model(judged.reference)
    print(f"sampling the untrained policy: {count} responses to each of {len(prompts)} prompts", flush=True)
    chosen = list(range(len(prompts)))
    asked = prompts.prompts(chosen, group_size=count)
    rollout = generate(policy, asked, step=0, micro_batch_size=config.val.batch_size)
    texts = policy.texts(rollout, prompts, [i for i in chosen for _ in range(count)])
    rewards = score(judged.reward, policy, texts).score.view(len(prompts), count)
    gold = judged.gold(texts).view(len(prompts), count) if judged.gold else None
    return torch.as_tensor(rewards), gold


def show(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlhf_cli.evaluation.frontier import BELIEVABLE, BestOfN, Point, fitted, past_the_peak, reached

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    table = Table("untrained policy", "KL", "reward", "gold", "", title="what could have been reached")
    for row in told["best_of_n"]:
        table.add_row(f"best of {row['n']}", f"≤ {row['kl']:.2f}", cell(row["reward"]), cell(row["gold"]), "")
    for row in told["optimal"]:
        doubt = "" if row["ess"] >= BELIEVABLE else f"not to be believed: worth {row['ess']:.1f} samples a prompt"
        table.add_row(f"optimal, β {row['beta']:g}", f"{row['kl']:.2f}", cell(row["reward"]), cell(row["gold"]), doubt)
    console = Console()
    console.print(table)
    best = [BestOfN(**row) for row in told["best_of_n"]]
    columns = ("run", "step", "KL", "reward", "gold", "of best-of-n's gain there", "gold curve")
    runs = Table(*columns, title="what was reached")
    for name in dict.fromkeys(row["run"] for row in told["checkpoints"]):
        rows = [row for row in told["checkpoints"] if row["run"] == name]
        last = rows[-1]
        share = reached(Point(last["kl"], last["reward"], last["gold"]), best)
        kls, golds = [r["kl"] for r in rows], [r["gold"] for r in rows]
        curve = "–"
        if None not in golds and (found := fitted(kls, golds)):
            turned = past_the_peak(kls, golds)
            peak = "does not turn" if found.peak is None else f"peak at KL {found.peak:.1f}"
            curve = f"past the peak (KL {found.peak:.1f})" if turned else peak
        gain = "beyond it" if share is None else f"{100 * share:.0f} %"
        figures = (f"{last['kl']:.2f}", cell(last["reward"]), cell(last["gold"]))
        runs.add_row(name, str(last["step"]), *figures, gain, curve)
    console.print(runs)
