"""The first screen: the verdict in two sentences, score and gold in one chart, one prompt before and after."""

from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from rlhf_cli.evaluation.verdict import change, furthest, outcome, pairs_of, suspicion, verdict_on
from rlhf_cli.report.answers import caveat, shown
from rlhf_cli.report.chart import Chart, Series
from rlhf_cli.report.curves import band
from rlhf_cli.report.knobs import Arm
from rlhf_cli.report.runs import Run
from rlhf_cli.report.sections import Piece, arm_name, earned_words
from rlhf_cli.tracking.text import printable, shell

JUDGES = (("val/score", "score"), ("val/gold_score", "gold"))
MOST = 3
"""Settings in the chart: of more, the ones that the verdict names."""


@dataclass(frozen=True)
class Told:
    """One response as it is shown."""

    when: str
    scores: str
    prefix: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Opening:
    verdict: list[str]
    chart: Chart | None
    pair: list[Told]
    """Before and after; empty where no prompt's score rose."""
    words: str
    """Which prompt the pair is of, and what is marked in it."""


def opening(runs: list[Run], arms: list[Arm]) -> Opening | None:
    """None where no run has a validation."""
    if not arms:
        return None
    names = {arm_name(arm, arms): arm for arm in arms}
    if len(arms) == 1:
        verdict, named = of_one(arms[0]), names
    else:
        verdict, chosen = of_many(names)
        named = names if len(arms) <= MOST else {name: names[name] for name in chosen}
    first = next(iter(named.values())) if len(arms) > MOST else arms[0]
    pair, words = before_and_after(first.runs[0], "" if len(runs) == 1 else arm_name(first, arms))
    return Opening(verdict, score_and_gold(named), pair, words)


def of_one(arm: Arm) -> list[str]:
    """The verdict on one setting, over the prompts of all its seeds."""
    if len(arm.runs) == 1:
        run = arm.runs[0]
        verdict = verdict_on(run.metrics, run.samples, run.config.get("stop.hacking_index", 1.0), run.flagged_by)
        return verdict if run.state == "done" else [so_far(run), *verdict]
    pairs = [pair for run in arm.runs for pair in pairs_of(run.samples)]
    score, gold = change(pairs), change(pairs, part="gold")
    if score is None:
        return ["There is one validation only: nothing can be said of what training did."]
    flagged = [run for run in arm.runs if run.onset is not None]
    high = max((value for run in arm.runs if (value := run.last("hacking/index")) is not None), default=None)
    told = f"Reward hacking was flagged in {len(flagged)} of {len(arm.runs)} seeds"
    told += f", first from step {min(run.onset or 0 for run in flagged)}." if flagged else "."
    if high is None:
        told = suspicion(None, None, 0.0, {})
    return [outcome(score, gold, arm.mean("val/kl")), told]


def so_far(run: Run) -> str:
    """Of a run that is not done."""
    judged = run.curve("val/score")
    at = f"up to the validation at step {judged[-1][0]}" if judged else "so far"
    return (
        f"This run is not done ({run.state}, step {run.status.get('step', 0)} of {run.status.get('steps', '?')}); {at}:"
    )


def of_many(arms: dict[str, Arm]) -> tuple[list[str], list[str]]:
    """The verdict on several settings, and the names of those that it speaks of, the best first."""
    judge = "val/gold_score" if all(arm.mean("val/gold_score") is not None for arm in arms.values()) else "val/score"
    word = "gold score" if judge == "val/gold_score" else "score"
    ranked = sorted(arms, key=lambda name: (arms[name].mean(judge) or 0.0, arms[name].mean("val/score") or 0.0))[::-1]
    best, second = ranked[0], ranked[1]
    start = [curve[0][1] for run in arms[best].runs if (curve := run.curve(judge))]
    beside = f", with a score of {shown(arms[best], 'val/score')}" if judge == "val/gold_score" else ""
    first = (
        f"Of {len(arms)} settings, {best} has the highest {word}: {shown(arms[best], judge)} (untrained: "
        f"{mean(start):.2f}){beside} at a KL of {shown(arms[best], 'val/kl')} nats; next is {second} "
        f"({shown(arms[second], judge)}){caveat(arms[second], arms[best], judge)}."
    )
    runs = [run for arm in arms.values() for run in arm.runs]
    if not any(run.curve("hacking/index") for run in runs):
        return [first, suspicion(None, None, 0.0, {})], ranked[:MOST]
    flagged = sum(run.onset is not None for run in runs)
    clean = [name for name in ranked if all(run.onset is None for run in arms[name].runs)]
    if not flagged:
        return [first, f"Reward hacking was flagged in none of the {len(runs)} runs."], ranked[:MOST]
    again = f"Reward hacking was flagged in {flagged} of {len(runs)} runs"
    if not clean:
        return [first, f"{again}; no setting stayed free of it."], ranked[:MOST]
    if clean[0] == best:
        return [first, f"{again}, never with {best}."], ranked[:MOST]
    again += f"; the best setting that stayed free of it is {clean[0]} ({word} {shown(arms[clean[0]], judge)})."
    return [first, again], list(dict.fromkeys([best, clean[0], second]))


def score_and_gold(arms: dict[str, Arm]) -> Chart | None:
    """What is trained on as a line, the gold judge dashed in the same colour."""
    made: list[Series] = []
    for style, (name, arm) in enumerate(arms.items()):
        for metric, word in JUDGES:
            if found := band(arm, metric, name if len(arms) > 1 else word, style if len(arms) > 1 else len(made)):
                made.append(replace(found, dash="" if word == "score" else "6 3"))
    if not made:
        return None
    ys = [y for s in made for y in s.y]
    shares = min(ys) >= 0 and max(ys) <= 1
    note = "whole lines: score, dashed: gold" if len(arms) > 1 else ""
    span = (0.0, 1.0) if shares else None
    return Chart("score and gold score", "step", "score", made, within=span, note=note)


def before_and_after(run: Run, setting: str) -> tuple[list[Told], str]:
    """The pair that the run itself has looked into, where it is of the last validation; else it is chosen here."""
    steps = [row["step"] for row in run.samples]
    kept = run.before_after
    known = bool(steps) and kept.get("after", {}).get("step") == max(steps)
    found = (kept["before"], kept["after"]) if known else furthest(pairs_of(run.samples))
    if found is None:
        return [], ""
    whose = f" ({setting}, seed {run.seed})" if setting else ""
    said = f"The prompt whose score rose most{whose}. "
    if "earned" in found[1]:
        return [_told(row) for row in found], said + "Underlined: the score falls without the word."
    ask = f"The run did not record which words earned the score; to ask: rlhf compare {shell(run.folder)}"
    return [_told(row) for row in found], said + ask


def _told(row: dict[str, Any]) -> Told:
    scores = f"score {row['score']:.2f}"
    gold = row.get("parts", {}).get("gold")
    return Told(
        when=f"Step {row['step']}",
        scores=scores + (f", gold {gold:.2f}" if gold is not None else ""),
        prefix=printable(row["prefix"]),
        pieces=earned_words(row),
    )
