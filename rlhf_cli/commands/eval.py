"""rlhf eval"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float:
    """Judge a checkpoint beside the untrained actor, or that alone, on the test prompts; writes eval.json."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle
    from rlhf_cli.runs.checkpoint import step_of
    from rlhf_cli.runs.folder import first_line
    from rlhf_cli.runs.hacking_watch import HackingWatch
    from rlhf_cli.runs.status import write_atomic

    hydra = HydraConfig.get()
    config = settle("eval", cfg, list(hydra.overrides.task))
    judged, checkpoint = judged_experiment(config, first_line(config))
    print(f"judging {checkpoint or 'the untrained actor'} on {len(judged.test)} test prompts", flush=True)
    metrics, rows = on_prompts(judged, judged.policy, judged.test, config)
    untrained: dict[str, float] = {}
    watch = HackingWatch.asked(config)
    if config.hacking.outliers:
        watch = watch.looking_for_outliers(judged.reward)
    if checkpoint:
        print("judging the untrained actor on the same prompts", flush=True)
        start = judged.policy.with_model(judged.reference)
        untrained, its_rows = on_prompts(judged, start, judged.test, config)
        watch.look(0, untrained, its_rows)
        metrics |= watch.look(step_of(checkpoint), metrics, rows)
    folder = Path(hydra.runtime.output_dir)
    result = {
        "checkpoint": str(checkpoint) if checkpoint else None,
        "config": config.model_dump(by_alias=True),
        "metrics": metrics,
        "untrained": untrained or None,
        "samples": rows,
    }
    write_atomic(folder / "eval.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _print(metrics, untrained, rows)
    if watch.suspicious:
        print(f"This looks like reward hacking: {watch.account(metrics, folder / 'eval.json')}")
    print(f"written: {folder / 'eval.json'}")
    return metrics["val/score"]


def on_prompts(judged: Any, policy: Any, prompts: Any, config: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(`val/*` metrics, sample rows) of a policy under an experiment's rewards."""
    from rlhf_cli.runs.hacking_watch import HackingWatch
    from rlhf_cli.training.validation import validate

    return validate(
        policy,
        judged.reference,
        prompts,
        judged.reward,
        judged.gold,
        batch_size=config.val.batch_size,
        lists=HackingWatch.asked(config).lists,
        edits=config.hacking.edits,
        metrics_of_users=judged.metrics,
    )


def judged_experiment(config: Any, first_line: str) -> tuple[Any, Path | None]:
    """The experiment of a checkpoint, to be judged; (experiment, checkpoint folder or None)."""
    from rlhf_cli.build.experiment import Saved, make_experiment
    from rlhf_cli.runs.checkpoint import find_checkpoint

    def notify(text: str) -> None:
        print(text, flush=True)

    notify(first_line)
    checkpoint = None
    if config.checkpoint not in (None, "none"):
        checkpoint = find_checkpoint(config.checkpoint, notify)
    saved = Saved(actor=str(checkpoint / "actor")) if checkpoint else Saved()
    return make_experiment(config, notify, saved=saved, learns=False), checkpoint


def _print(metrics: dict[str, float], untrained: dict[str, float], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.tracking.text import printable

    table = Table("metric", *(["untrained", "checkpoint"] if untrained else ["value"]), title="evaluation")
    for column in table.columns[1:]:
        column.justify = "right"
    judges = [name for name in metrics if name.startswith("val/gold_score/")]
    first = ("val/score", "val/gold_score", *judges, "hacking/index")
    names = [name for name in first if name in metrics] + [name for name in metrics if name not in first]
    for name in names:
        if name.endswith("_drift"):
            continue  # the difference of two columns that are here
        before = [f"{untrained[name]:.4g}" if name in untrained else ""] if untrained else []
        table.add_row(name.removeprefix("val/"), *before, f"{metrics[name]:.4g}")
    console = Console()
    console.print(table)
    samples = Table("class", "prefix", "response", "score", title="samples", show_lines=True)
    for row in rows[:6]:
        cells = (row["class"], row["prefix"], row["response"], f"{row['score']:.3f}")
        samples.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(samples)
