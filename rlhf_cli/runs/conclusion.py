"""What is left of a run that is done: the words that earned the score, and what a person reads at the end."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_cli.config.schema import Config
from rlhf_cli.evaluation.attribution import leave_one_word_out
from rlhf_cli.evaluation.validation_metrics import texts_of
from rlhf_cli.evaluation.verdict import furthest, pairs_of, verdict_on
from rlhf_cli.rewards.scorer import Score
from rlhf_cli.runs.best import named
from rlhf_cli.runs.status import write_atomic
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.tracking.text import shell, to_copy

WORDS = "before_after.json"


def record_words(folder: Path, score: Score, notify: Callable[[str], None]) -> None:
    """Write before_after.json: the prompt whose score rose most, at the first and the last validation, and what each
    word of both responses earned. It asks the reward once a word; an error is told and stops nothing."""
    pair = furthest(pairs_of(read_jsonl(folder / "samples.jsonl")))
    if pair is None:
        return
    try:
        earned = leave_one_word_out(score, texts_of([*pair]))
    except Exception as error:  # the run is done, whatever a reward makes of half a sentence
        notify(f"which words earned the score is not known: {type(error).__name__}: {error}")
        return
    before, after = (row | {"earned": pieces} for row, pieces in zip(pair, earned, strict=True))
    write_atomic(folder / WORDS, json.dumps({"before": before, "after": after}, ensure_ascii=False) + "\n")


def asks_for_free(config: Config) -> bool:
    """Whether the reward is a model or a rule of ours: an endpoint costs money a word, a user's function who knows."""
    return not any(judge.fn or judge.endpoint for judge in config.reward.all_sources.values())


def closing(folder: Path, config: Config) -> list[str]:
    """The account, the verdict and the checkpoints."""
    rows, threshold = read_jsonl(folder / "metrics.jsonl"), config.stop.hacking_index
    lines = [account_of(rows, threshold)]
    verdict = verdict_on(rows, read_jsonl(folder / "samples.jsonl"), threshold, config.stop.hacking_by)
    lines += [f"{lead} {sentence}" for lead, sentence in zip(("verdict:", " " * 8), verdict, strict=False)]
    last, best = (named(folder, name) for name in ("last", "best"))
    if last:
        chosen = f"; best by {config.checkpoint.best}: {best}" if best and config.checkpoint.best else ""
        lines.append(f"checkpoints: {folder / 'checkpoints'} (last: {last}{chosen})")
    return lines


def wrapped(line: str, width: int) -> str:
    """The line broken between words, what follows the first set in; paths stay whole."""
    return "\n".join(
        textwrap.wrap(line, width, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    )


def what_next(folder: Path, config: Config) -> list[str]:
    """Commands to copy, each with what it is for."""
    place = shell(folder)
    commands = {
        f"rlhf report {place}": "the page",
        f"rlhf compare {place}": "before and after",
        f"rlhf sample checkpoint={place}": "what it writes",
        f"rlhf train resume={place} steps={2 * config.steps}": "go on",
    }
    return to_copy(commands)


def account_of(rows: list[dict[str, Any]], threshold: float) -> str:
    """How a run changed the untrained policy, in one line."""
    judged = [row for row in rows if "val/score" in row]
    if not judged:
        return "no validation gave a score"
    (first, last), told = (judged[0], judged[-1]), []
    gold = "val/gold_score"
    each = {key: key.removeprefix("val/").replace("_score/", " ") for key in last if key.startswith(f"{gold}/")}
    names = {"val/score": "score", **(each or {gold: "gold"}), "val/kl": "KL", "val/response_length": "length"}
    for key, name in names.items():
        if isinstance(first.get(key), float) and isinstance(last.get(key), float):
            told.append(f"{name} {first[key]:z.2f} → {last[key]:z.2f}")
    if isinstance(last.get("hacking/index"), float):
        told.append(f"hacking index {last['hacking/index']:.2f} (flagged from {threshold:g}, twice in a row)")
    return f"steps {first['step']} → {last['step']}: {' · '.join(told)}"
