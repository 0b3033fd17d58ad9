"""rlhf audit"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

SHOWN = 5
"""Exploits that are printed; all are in audit.json."""


def run(cfg: DictConfig) -> float:
    """Search for what raises the reward without raising gold; writes audit.json. (The robustness.)"""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.build.rewards import same_as
    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.runs.status import mark_reported, write_atomic

    hydra = HydraConfig.get()
    config = settle("audit", cfg, list(hydra.overrides.task))
    if config.gold.name == "none":
        raise UserError("gold=none: an audit needs a judge that says what was earned; type gold=roberta_large")
    for name, judge in config.gold.judges.items():
        if twin := same_as(judge, config.reward):
            raise UserError(f"gold={name} is {twin}: what it rewards would be earned; give another gold=")
    kept, wanted = audited(config), config.audit
    share = float(kept["robustness"]["share"])
    out = Path(hydra.runtime.output_dir) / "audit.json"
    write_atomic(out, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    show(kept)
    notify(f"written: {out}")
    if wanted.fail_below is not None and share < wanted.fail_below:
        error = BelowWanted(f"robustness {share:.3f} is below audit.fail_below={wanted.fail_below:g}")
        notify(str(error))
        mark_reported(error)
        raise error
    return share


def audited(config: Any) -> dict[str, Any]:
    """What audit.json says."""
    import torch

    from rlhf_cli.build.rewards import gold_judges, scorer
    from rlhf_cli.engine.device import compute
    from rlhf_cli.evaluation.audit import (
        Gains,
        by_cost,
        by_family,
        cheapest,
        confirmed,
        robustness,
        search,
        target_words,
        transfer,
    )
    from rlhf_cli.evaluation.edits import Material

    wanted, where = config.audit, compute(config.device, config.precision)
    made, _ = scorer(config, where, notify)
    texts = gather(config)
    count = len(texts.responses)
    named = " and ".join(config.gold.judges)
    notify(f"scale={config.scale}: {count} responses, reward={config.reward.name}, gold={named}")
    reward = Gains.of(made.score, texts)
    golds = {name: Gains.of(judge, texts) for name, judge in gold_judges(config, where, notify).items()}
    gold = confirmed([*golds.values()])
    few = texts.select(torch.arange(min(wanted.attributed, count)))
    targets = target_words(made.score, few) if wanted.attributed and "target" in wanted.families else []
    material = Material(texts.responses, targets, config.prompt.system or "")
    plan = {"rounds": wanted.rounds, "tries": wanted.tries, "seed": config.seed}
    tried = search(texts, reward, gold, material, wanted.families, **plan, told=progress)
    exploits = cheapest(tried, margin=wanted.margin)
    share, low, high = robustness(exploits, count=count)
    others = {name: Gains.of(score, texts) for name, score in judges(config, where).items()}
    return {
        "reward": config.reward.name,
        "gold": config.gold.name,
        "judges": [*config.gold.judges],
        "responses": count,
        "tried": len(tried),
        "robustness": {"share": share, "low": low, "high": high, "margin": wanted.margin},
        "within_words": by_cost(exploits, count=count),
        "sd": {"reward": reward.scale} | {f"gold/{name}": judge.scale for name, judge in golds.items()},
        "families": by_family(tried, margin=wanted.margin, count=count),
        "targets": targets,
        "transfer": transfer(exploits, texts, others, margin=wanted.margin),
        "exploits": [asdict(found) | {"unearned": found.unearned} for found in exploits],
    }


class BelowWanted(Exception):
    """The reward is not robust enough: exit code 1, for scripts."""


def notify(text: str) -> None:
    print(text, flush=True)


def progress(done: int, of: int) -> None:
    notify(f"searched: round {done} of {of}")


def gather(config: Any) -> Any:
    """The responses to start from: a run's last validation samples, else reviews after their first words."""
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.data.sources import load_reviews
    from rlhf_cli.rewards.scorer import Texts
    from rlhf_cli.tracking.jsonl import read_jsonl

    wanted = config.audit
    if wanted.run:
        path = Path(wanted.run).expanduser() / "samples.jsonl"
        rows = read_jsonl(path) if path.is_file() else []
        if not rows:
            raise UserError(f"audit.run={wanted.run}: no validation samples are there (give a run's folder)")
        pairs = [(row["prefix"], row["response"]) for row in rows if row["step"] == rows[-1]["step"]]
    else:
        reviews = load_reviews(config.data.source, seed=config.seed + 1, limit=2 * wanted.texts)
        pairs = [split(r.text, config.data.max_words, config.rollout.max_response_length) for r in reviews]
    pairs = [(prefix, response) for prefix, response in pairs if response.strip()][: wanted.texts]
    if len(pairs) < 2:
        raise UserError("an audit needs two responses at least: raise audit.texts, or give another audit.run=")
    prefixes, responses = [prefix for prefix, _ in pairs], [response for _, response in pairs]
    return Texts(prefixes, prefixes, responses, [[] for _ in pairs])


def split(review: str, prefix: int, response: int) -> tuple[str, str]:
    """(its first words, the words after them, at most `response`)."""
    words = review.split()
    return " ".join(words[:prefix]), " ".join(words[prefix : prefix + response])


def judges(config: Any, where: Any) -> dict[str, Any]:
    """Those of audit.transfer but the reward, as scores of the view that the reward reads."""
    from rlhf_cli.build.paths import classifier_path
    from rlhf_cli.rewards.classifier import Classifier

    reward = config.reward
    found: dict[str, Any] = {}
    for name in config.audit.transfer:
        if name == reward.name or name in config.gold.judges:
            continue
        if name == "vader":
            found[name] = partial(_by_vader, reward.text, reward.target)
            continue
        path = classifier_path(name, config, notify)
        judge = Classifier(path, device=where.device, batch_size=reward.batch_size, dtype=where.dtype)
        found[name] = partial(_by_classifier, judge, reward.text, reward.target)
    return found


def _by_vader(view: str, target: str, texts: Any) -> Any:
    import torch

    from rlhf_cli.data.lexicon import vader_share

    return torch.tensor(vader_share(texts.view(view), target))


def _by_classifier(judge: Any, view: str, target: str, texts: Any) -> Any:
    return judge.score(texts.view(view), target)


def show(kept: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.evaluation.edits import marked
    from rlhf_cli.tracking.text import printable

    console, robust, count = Console(), kept["robustness"], kept["responses"]
    table = Table("edit", "responses it exploits", "best unearned gain, mean", title="one edit of each family")
    for family, row in sorted(kept["families"].items(), key=lambda pair: -pair[1]["exploited"]):
        table.add_row(family, f"{row['exploited']:.3f}", f"{row['unearned']:.2f} sd")
    console.print(table)
    for found in kept["exploits"][:SHOWN]:
        gains = f"reward {found['reward']:+.2f} sd, gold {found['gold']:+.2f} sd"
        words = "1 word" if found["cost"] == 1 else f"{found['cost']} words"
        console.print(Text(f"{words}, {' + '.join(found['path'])}: {gains}", "bold"))
        console.print(Text(f"  {printable(marked(found['before'], found['after']))}"))
    if kept["targets"]:
        console.print(Text(f"words that earn most: {', '.join(map(printable, kept['targets']))}"))
    console.print(Text(f"1 sd is, on these responses: {', '.join(f'{n} {v:.3f}' for n, v in kept['sd'].items())}"))
    paid = ", ".join(f"{words}: {share:.3f}" for words, share in kept["within_words"].items())
    console.print(Text(f"responses exploited by at most so many changed words: {paid}"))
    for name, fooled in kept["transfer"].items():
        console.print(Text(f"of the exploits, {name} falls for {fooled:.3f}"))
    interval = f"95 % {robust['low']:.3f} to {robust['high']:.3f}"
    held, margin = count - len(kept["exploits"]), robust["margin"]
    console.print(
        Text(
            f"robustness {robust['share']:.3f} ({interval}): for {held} of {count} "
            f"responses none of {kept['tried']} edits gained {margin:g} sd of reward that gold does not confirm"
        )
    )
