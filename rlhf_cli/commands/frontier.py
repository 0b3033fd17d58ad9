"""rlhf frontier"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

EACH = "val/gold_score/"
"""What the metric of a judge of several begins with."""


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
    rewards, golds = sampled(judged, config)
    wanted = config.frontier
    told: dict[str, Any] = {
        "best_of_n": by_judge(golds, lambda gold: plain(best_of_n(rewards, gold, wanted.n))),
        "optimal": by_judge(golds, lambda gold: plain(optimal(rewards, gold, wanted.betas))),
        "checkpoints": checkpoints,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "frontier.json", json.dumps(told, indent=1) + "\n")
    draw(told, out / "frontier.png")
    show(told)
    print(f"written: {out / 'frontier.json'} and {out / 'frontier.png'}")


def validations(folder: Path) -> list[dict[str, Any]]:
    """Every validation of a run: its step, KL, reward and gold score, `gold/<name>` of each judge of several."""
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
            **{f"gold/{key.removeprefix(EACH)}": value for key, value in row.items() if key.startswith(EACH)},
        }
        for row in rows
    ]


def by_judge(golds: dict[str, Any], rows: Callable[[Any], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows with `gold` by the first judge; of several judges, each one's as `gold/<name>` too."""
    several = golds if len(golds) > 1 else {}
    each = {f"gold/{name}": [row["gold"] for row in rows(gold)] for name, gold in several.items()}
    first = rows(next(iter(golds.values()), None))
    return [row | {name: column[i] for name, column in each.items()} for i, row in enumerate(first)]


def sampled(judged: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """(rewards, gold scores by judge) of the untrained policy's responses, each [prompts, samples]."""
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
    golds = {name: judge(texts).view(len(prompts), count) for name, judge in judged.gold.items()}
    return torch.as_tensor(rewards), golds


def show(told: dict[str, Any]) -> None:
    from rich.console import Console

    from rlhf_cli.evaluation.frontier import BELIEVABLE
    from rlhf_cli.report.frontier_chart import judges_in, standings

    def cells(row: dict[str, Any]) -> list[str]:
        return ["–" if (value := row[key]) is None else f"{value:.3f}" for key in ("reward", *judges)]

    judges = judges_in(told["best_of_n"])
    named = [judge.replace("/", " ") for judge in judges]
    rows = [[f"best of {row['n']}", f"≤ {row['kl']:.2f}", *cells(row)] for row in told["best_of_n"]]
    notes = []
    for row in told["optimal"]:
        doubted = row["ess"] < BELIEVABLE
        rows.append([f"optimal, β {row['beta']:g}{' *' if doubted else ''}", f"{row['kl']:.2f}", *cells(row)])
        notes += [f"β {row['beta']:g}: {row['ess']:.1f}"] if doubted else []
    worth = f"* not to be believed: worth so few samples a prompt ({', '.join(notes)})" if notes else ""
    console = Console()
    tabulate(
        console, ["untrained policy", "KL", "reward", *named], rows, title="what could have been reached", note=worth
    )
    tabulate(console, *standings(told), title="what was reached")


def tabulate(console: Any, columns: list[str], rows: list[list[str]], *, title: str, note: str = "") -> None:
    """A table; where words would have to break in it, a paragraph a row instead, its first cell above it."""
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.tracking.text import printable

    table = Table(*columns, title=title, caption=note or None)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    room = console.width - 3 * len(columns) - 1
    if (widths := whole_words([columns, *rows], room)) is not None:
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
        console.print(table)
        return
    console.print(Text(title, "italic"))
    for name, *figures in rows:
        told = " · ".join(f"{column} {cell}" for column, cell in zip(columns[1:], figures, strict=True))
        console.print(Text(printable(name), "bold"), Text(printable(told)), sep="\n")
    console.print(Text(note, "dim"), end="\n" if note else "")


def whole_words(rows: list[list[str]], room: int) -> list[int] | None:
    """Widths of a table's columns in which no word breaks and no name of a row does; None where there is no room."""
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    full = [max(map(cell_len, column)) for column in columns]
    widths = [max(cell_len(word) for cell in column for word in [*cell.split(), ""]) for column in columns]
    widths[0] = max(widths[0], *(cell_len(name) for name in columns[0][1:]), 0)
    left = room - sum(widths)
    for i, wanted in enumerate(full):
        more = min(max(left, 0), wanted - widths[i])
        widths[i], left = widths[i] + more, left - more
    return widths if left >= 0 else None
