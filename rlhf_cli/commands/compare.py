"""rlhf compare"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float:
    """Two checkpoints on the same prompts with the same random numbers; writes compare.json and compare.html."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.commands.eval import judged_experiment, on_prompts
    from rlhf_cli.commands.sample import typed_prompts
    from rlhf_cli.config.compose import settle
    from rlhf_cli.evaluation.attribution import leave_one_word_out
    from rlhf_cli.evaluation.validation_metrics import texts_of
    from rlhf_cli.evaluation.win_rate import UNTRAINED
    from rlhf_cli.runs.folder import first_line
    from rlhf_cli.runs.status import mark_reported

    hydra = HydraConfig.get()
    config = settle("compare", cfg, list(hydra.overrides.task))
    judged, first = judged_experiment(config, first_line(config))
    other, second = opponent(config, judged)
    shown = typed_prompts(config, judged.policy.tokenizer, judged.policy.generation.pad_id)
    names = (str(first or UNTRAINED), str(second or UNTRAINED))
    columns: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    for name, one in zip(names, (judged.policy, other), strict=True):
        notify(f"{name}: writing to {len(shown)} prompts to read and {len(judged.test)} test prompts")
        columns.append((on_prompts(judged, one, shown, config)[1], on_prompts(judged, one, judged.test, config)[1]))
    (read_a, test_a), (read_b, test_b) = columns
    rates = compare_scores(test_a, test_b)
    read = [*read_a, *read_b]
    for row, pieces in zip(read, leave_one_word_out(judged.reward.score, texts_of(read)), strict=True):
        row["earned"] = pieces
    kept = {"a": names[0], "b": names[1], "win_rate": rates, "typed": [read_a, read_b], "test": [test_a, test_b]}
    show(names, read_a, read_b, rates)
    write(Path(hydra.runtime.output_dir), kept, simulation=config.scale == "mini")
    rate = float(rates["reward"]["rate"])
    if config.fail_below is not None and rate < config.fail_below:
        error = BelowWanted(f"B wins {rate:.3f} of the prompts, less than fail_below={config.fail_below:g}")
        notify(str(error))
        mark_reported(error)
        raise error
    return rate


def notify(text: str) -> None:
    print(text, flush=True)


def opponent(config: Any, judged: Any) -> tuple[Any, Path | None]:
    """(the policy of `against`, its checkpoint or None for the untrained actor).

    Raises UserError where its tokenizer is another one.
    """
    from rlhf_cli.build.paths import model_path
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.engine.load import load_actor, load_tokenizer
    from rlhf_cli.runs.checkpoint import find_checkpoint

    if config.against in (None, "none"):
        checkpoint, path = None, model_path(config.actor, config, notify)
    else:
        checkpoint = find_checkpoint(config.against, notify)
        path = str(checkpoint / "actor")
    if load_tokenizer(path).get_vocab() != judged.policy.tokenizer.get_vocab():
        raise UserError("the two policies have different tokenizers: they cannot be given the same prompts")
    return judged.policy.with_model(load_actor(path, device=judged.compute.device)), checkpoint


def write(folder: Path, kept: dict[str, Any], *, simulation: bool) -> None:
    """compare.json, compare.md and compare.html."""
    from rlhf_cli.report.page import render
    from rlhf_cli.report.sections import compare_section
    from rlhf_cli.runs.status import write_atomic

    (read_a, read_b), names = kept["typed"], (kept["a"], kept["b"])
    page = render([], [compare_section(kept)], title="rlhf compare", simulation=simulation)
    files = {
        "json": json.dumps(kept, indent=1, ensure_ascii=False) + "\n",
        "md": markdown(names, read_a, read_b, kept["win_rate"]),
        "html": page,
    }
    for kind, text in files.items():
        write_atomic(folder / f"compare.{kind}", text)
    notify(f"written: {', '.join(str(folder / f'compare.{kind}') for kind in files)}")


class BelowWanted(Exception):
    """B does not win often enough: exit code 1, for scripts."""


def compare_scores(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The win rate of b under the reward that was trained on, and under gold: the first judge, and each of several."""
    from rlhf_cli.evaluation.validation_metrics import gold_of
    from rlhf_cli.evaluation.win_rate import win_rate

    scores = {"reward": ([row["score"] for row in a], [row["score"] for row in b])}
    golds = {name: (of_a, gold_of(b)[name]) for name, of_a in gold_of(a).items()}
    if golds:
        scores["gold"] = next(iter(golds.values()))
    scores |= {f"gold/{name}": both for name, both in golds.items() if len(golds) > 1}
    rates = {}
    for name, (x, y) in scores.items():
        rate, low, high = win_rate(x, y)
        rates[name] = {"rate": rate, "low": low, "high": high, "mean_a": sum(x) / len(x), "mean_b": sum(y) / len(y)}
    return rates


def painted(row: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """A response in pieces: (text, its sentiment by the lexicon, whether it earned some of the score)."""
    from rlhf_cli.data.lexicon import vader_words
    from rlhf_cli.evaluation.win_rate import earned_moods

    return earned_moods(row["earned"], vader_words())


def markdown(names: tuple[str, str], a: list[Any], b: list[Any], rates: dict[str, dict[str, float]]) -> str:
    """The same as a Markdown page: negative words bold, positive ones in italics, ° behind what earned score."""
    from rlhf_cli.evaluation.win_rate import who, wins
    from rlhf_cli.tracking.text import markdown_text

    marks = {"positive": "_", "negative": "**", "": ""}

    def cell(row: dict[str, Any]) -> str:
        pieces = (
            f"{marks[m]}{markdown_text(p)}{marks[m]}{'°' if e and p[:1].isalnum() else ''}" for p, m, e in painted(row)
        )
        return f"{markdown_text(row['prefix'])} ▸ {''.join(pieces).strip()} ({row['score']:.2f})"

    lines = [f"A: {markdown_text(names[0])}  ", f"B: {markdown_text(names[1])}", "", "| A | B |", "|---|---|"]
    lines += [f"| {cell(one)} | {cell(other)} |" for one, other in zip(a, b, strict=True)]
    lines += ["", "**Negative** and _positive_ words by the VADER lexicon; ° : the score falls without it.", ""]
    winner = who(names)
    lines += [f"| judge | mean A | mean B | {winner} wins | 95 % interval |", "|---|---|---|---|---|"]
    for judge, r in rates.items():
        rate, low, high = wins(r, winner)
        lines.append(f"| {judge} | {r['mean_a']:.3f} | {r['mean_b']:.3f} | {rate:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines) + "\n"


def show(names: tuple[str, str], a: list[Any], b: list[Any], rates: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.evaluation.win_rate import who, wins
    from rlhf_cli.tracking.text import printable

    styles = {"positive": "green", "negative": "bold red", "": ""}

    def cell(row: dict[str, Any]) -> Text:
        opened = bool(row["earned"]) and row["earned"][0][0][:1].isspace()
        text = Text(printable(row["prefix"]) + ("" if opened else " "), "dim")
        for piece, mood, earned in painted(row):
            shown = printable(piece) or " "
            text.append(shown, f"{styles[mood]} {'underline' if earned else ''} not dim".strip())
        return text.append(f"  [{row['score']:.2f}]", "dim")

    console = Console()
    table = Table("A", "B", show_lines=True, title="the same prompts, the same random numbers", expand=True)
    table.caption = "green, red: positive and negative words of the lexicon; underlined: the score falls without it"
    for one, other in zip(a, b, strict=True):
        table.add_row(cell(one), cell(other))
    console.print(Text(f"A: {names[0]}\nB: {names[1]}"))
    console.print(table)
    winner = who(names)
    summary = Table("judge", "mean A", "mean B", f"{winner} wins", "95 % interval", title="on the test prompts")
    for judge, row in rates.items():
        rate, low, high = wins(row, winner)
        means = (f"{row['mean_a']:.3f}", f"{row['mean_b']:.3f}")
        summary.add_row(judge, *means, f"{rate:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(summary)
