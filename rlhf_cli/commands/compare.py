"""rlhf compare"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(cfg: DictConfig) -> float:
    """Two checkpoints on the same prompts with the same random numbers; writes compare.json and compare.html."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.commands.eval import judged_lab
    from rlhf_cli.commands.sample import DEFAULT
    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.data.prompts import PromptSet, Template
    from rlhf_cli.models.load import load_actor, load_tokenizer
    from rlhf_cli.training.checkpoint import find_checkpoint
    from rlhf_cli.training.judge import judge
    from rlhf_cli.training.run import first_line
    from rlhf_cli.training.setup import model_path
    from rlhf_cli.training.status import write_atomic

    def notify(text: str) -> None:
        print(text, flush=True)

    hydra = HydraConfig.get()
    config = settle("compare", cfg, list(hydra.overrides.task))
    lab, first = judged_lab(config, first_line(config))
    if config.against in (None, "none"):
        second, path = None, model_path(config.actor, config, notify)
    else:
        second = find_checkpoint(config.against, notify)
        path = str(second / "actor")
    if load_tokenizer(path).get_vocab() != lab.tokenizer.get_vocab():
        raise UserError("the two policies have different tokenizers: they cannot be given the same prompts")
    template = Template(config.prompt.name, config.prompt.system, config.prompt.user)
    typed = [{"prefix": prefix, "class": "typed"} for prefix in config.prefixes or DEFAULT]
    shown = PromptSet.make(typed, template, lab.tokenizer, pad_id=lab.pad)
    names = (str(first or "the untrained actor"), str(second or "the untrained actor"))
    columns: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    for actor in (lab.actor, load_actor(path, device=lab.compute.device)):
        lab.actor = actor
        columns.append((judge(lab, shown)[1], judge(lab, lab.test)[1]))
    (read_a, test_a), (read_b, test_b) = columns
    rates = compare_scores(lab, test_a, test_b)
    folder = Path(hydra.runtime.output_dir)
    kept = {"a": names[0], "b": names[1], "win_rate": rates, "typed": [read_a, read_b], "test": [test_a, test_b]}
    write_atomic(folder / "compare.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    show(names, read_a, read_b, rates, folder / "compare.html")
    notify(f"written: {folder / 'compare.json'}, {folder / 'compare.html'}")
    return float(rates["reward"]["rate"])


def compare_scores(lab: Any, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The win rate of b under the reward that was trained on, and under the gold judge."""
    from rlhf_cli.evaluation.compare import win_rate
    from rlhf_cli.rewards.scorer import Texts

    scores = {"reward": ([row["score"] for row in a], [row["score"] for row in b])}
    if lab.gold:
        texts = [
            Texts(
                prefixes=[row["prefix"] for row in rows],
                prompts=[row["prompt"] for row in rows],
                responses=[row["response"] for row in rows],
                tokens=[[] for _ in rows],
            )
            for rows in (a, b)
        ]
        scores["gold"] = (lab.gold(texts[0]).tolist(), lab.gold(texts[1]).tolist())
    rates = {}
    for name, (x, y) in scores.items():
        rate, low, high = win_rate(x, y)
        rates[name] = {"rate": rate, "low": low, "high": high, "mean_a": sum(x) / len(x), "mean_b": sum(y) / len(y)}
    return rates


def show(names: tuple[str, str], a: list[Any], b: list[Any], rates: dict[str, dict[str, float]], html: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.data.lexicon import vader_words
    from rlhf_cli.evaluation.compare import moods
    from rlhf_cli.rewards.scorer import joined
    from rlhf_cli.tracking.text import printable

    styles, words = {"positive": "green", "negative": "bold red", "": ""}, vader_words()

    def cell(row: dict[str, Any]) -> Text:
        text = Text()
        for piece, mood in moods(printable(joined(row["prefix"], row["response"])), words):
            text.append(piece, styles[mood])
        return text.append(f"  [{row['score']:.2f}]", "dim")

    console = Console(record=True)
    table = Table("A", "B", show_lines=True, title="the same prompts, the same random numbers", expand=True)
    for one, other in zip(a, b, strict=True):
        table.add_row(cell(one), cell(other))
    console.print(Text(f"A: {names[0]}\nB: {names[1]}"))
    console.print(table)
    summary = Table("judge", "mean A", "mean B", "B wins", "95 %", title="on the test prompts")
    for judge, row in rates.items():
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        summary.add_row(judge, f"{row['mean_a']:.3f}", f"{row['mean_b']:.3f}", f"{row['rate']:.2f}", interval)
    console.print(summary)
    console.save_html(str(html))
