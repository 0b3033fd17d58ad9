"""rlhf probe"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

SHOWN = 4
"""Texts whose readings are printed; all are counted, and written to probe.json."""


def run(cfg: DictConfig) -> None:
    """How reward models judge texts, bare and wrapped as a chat; writes probe.json."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.build.paths import classifier_path
    from rlhf_cli.config.compose import settle
    from rlhf_cli.data.reviews import SENTIMENTS
    from rlhf_cli.engine.device import compute
    from rlhf_cli.engine.load import class_index
    from rlhf_cli.evaluation.wrapping import probe, rates
    from rlhf_cli.rewards.classifier import Classifier
    from rlhf_cli.runs.status import write_atomic

    hydra = HydraConfig.get()
    config = settle("probe", cfg, list(hydra.overrides.task))
    where = compute(config.device, config.precision)

    def notify(text: str) -> None:
        print(text, flush=True)

    texts, known, prefixes = gather(config)
    notify(f"scale={config.scale}: {len(texts)} texts under {', '.join(config.probe.models)}")
    models: dict[str, Any] = {}
    for name in config.probe.models:
        path = classifier_path(name, config, notify)
        judge = Classifier(path, device=where.device, batch_size=config.reward.batch_size, dtype=where.dtype)
        columns = [class_index(judge.model, label) for label in SENTIMENTS]
        models[name] = lambda batch, judge=judge, columns=columns: judge.probabilities(batch)[:, columns]
    readings = probe(texts, known, models, system=config.prompt.system or "", prefixes=prefixes)
    table = rates(readings)
    why = {name: explained(judge, texts[:SHOWN]) for name, judge in models.items()}
    folder = Path(hydra.runtime.output_dir)
    kept = {"texts": texts, "readings": [asdict(r) for r in readings], "rates": table, "earned": why}
    write_atomic(folder / "probe.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    show(texts, readings, table, why)
    notify(f"written: {folder / 'probe.json'}")


def gather(config: Any) -> tuple[list[str], list[str | None], list[str] | None]:
    """(texts, their known labels, what they continue): typed, a run's samples, a file's; else reviews of data.source
    after an example of ours."""
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.data.sources import load_reviews
    from rlhf_cli.evaluation.wrapping import EXAMPLE
    from rlhf_cli.tracking.jsonl import read_jsonl

    wanted = config.probe
    if wanted.texts:
        return list(wanted.texts), [None] * len(wanted.texts), None
    if wanted.run:
        path = Path(wanted.run).expanduser() / "samples.jsonl"
        if not path.is_file():
            raise UserError(f"probe.run={wanted.run}: no samples.jsonl is there (give a run's folder)")
        rows = read_jsonl(path)
        if not rows:
            raise UserError(f"probe.run={wanted.run}: the run has not validated yet, so it has no samples")
        last = [row for row in rows if row["step"] == rows[-1]["step"]]
        return [row["response"] for row in last], [None] * len(last), [row["prefix"] for row in last]
    reviews = load_reviews(wanted.file or config.data.source, seed=config.seed + 1, limit=wanted.reviews)
    texts: list[str] = [r.text for r in reviews]
    known: list[str | None] = [r.label for r in reviews]
    return (texts, known, None) if wanted.file else ([EXAMPLE, *texts], ["negative", *known], None)


def explained(judge: Any, texts: list[str]) -> list[Any]:
    """Of each bare text, what each word gave to the label that the model chose."""
    from rlhf_cli.evaluation.attribution import leave_one_word_out
    from rlhf_cli.rewards.scorer import Texts

    earned = []
    for text, label in zip(texts, judge(texts).argmax(1).tolist(), strict=True):
        column = partial(_column, judge, label)
        earned += leave_one_word_out(column, Texts([""], [""], [text], [[]]))
    return earned


def _column(judge: Any, label: int, texts: Any) -> Any:
    return judge(texts.responses)[:, label]


def show(texts: list[str], readings: list[Any], table: list[dict[str, Any]], why: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.data.reviews import SENTIMENTS
    from rlhf_cli.evaluation.attribution import earners
    from rlhf_cli.tracking.text import printable

    console = Console()
    for i, text in enumerate(texts[:SHOWN]):
        console.print(Text(f"{i + 1}. {printable(text)}"))
        shown = Table("model", "wrapping", "label", *SENTIMENTS)
        for r in (r for r in readings if r.text == i):
            label = r.label + (" ← flipped" if r.flipped else "") + (" (misread)" if r.misread else "")
            style = "bold red" if r.flipped else "yellow" if r.misread else ""
            shown.add_row(r.model, r.wrapping, label, *(f"{r.probabilities[s]:.2f}" for s in SENTIMENTS), style=style)
        console.print(shown)
        for model, all_earned in why.items():
            words = ", ".join(f"{printable(word)} {value:.2f}" for word, value in earners(all_earned[i]))
            console.print(Text(f"   {model}, bare: what made the label: {words or 'no word by itself'}", "dim"))
    if len(texts) == 1:
        return
    columns = ("model", "wrapping", "flips", "rate", "95 %", "P(neg.) moves", "misread")
    summary = Table(*columns, title=f"all {len(texts)} texts")
    for column, width in zip(summary.columns, (13, 9, 5, 5, 8, 8, 8), strict=True):
        column.overflow, column.width = "fold", width if console.width < 100 else None
    for row in table:
        misread = "–" if row["misread"] is None else f"{row['misread']} of {row['known']}"
        interval = f"{row['flip_low']:.3f} to {row['flip_high']:.3f}"
        flips = (
            ("–", "–", "–") if row["wrapping"] == "bare" else (str(row["flips"]), f"{row['flip_rate']:.3f}", interval)
        )
        moved = "–" if row["wrapping"] == "bare" else f"{row['moved']:+.3f} ± {row['moved_half']:.3f}"
        summary.add_row(row["model"], row["wrapping"], *flips, moved, misread)
    console.print(summary)
