"""The answer to a comparison in a sentence, computed from the runs: what differs, and whether the seeds can show it."""

import math
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from rlhf_cli.report.knobs import Arm, numeric

LABELS = {
    "val/score": "score",
    "val/gold_score": "gold score",
    "val/kl": "KL",
    "val/repetition": "repetition",
    "val/distinct_2": "distinct bigrams",
    "val/response_length": "length",
    "val/perplexity": "perplexity",
    "hacking/index": "hacking index",
    "train/clipfrac": "clipped share",
}


def label(metric: str) -> str:
    """A metric's name in a sentence."""
    if metric.startswith("val/gold_score/"):
        return f"gold score, {metric.removeprefix('val/gold_score/')}"
    return LABELS.get(metric, metric.partition("/")[2].replace("_", " ") or metric)


def own_metrics(arms: Iterable[Arm]) -> list[str]:
    """Those of val.metrics, which the user has written."""
    runs = [run for arm in arms for run in arm.runs]
    names = {f"val/{dotted.rpartition(':')[2]}" for run in runs for dotted in run.config.get("val.metrics") or ()}
    logged = dict.fromkeys(key for run in runs for row in run.metrics for key in row)
    return [key for key in logged if any(key == name or key.startswith(f"{name}/") for name in names)]


def golds(arms: Iterable[Arm]) -> list[str]:
    """The metrics of the gold judges where a run has several."""
    rows = [row for arm in arms for run in arm.runs for row in run.metrics]
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith("val/gold_score/")))


def shown(arm: Arm, metric: str) -> str:
    """`0.93 ± 0.02`, or the one value, or – where there is none."""
    value, spread = arm.mean(metric), arm.spread(metric)
    if value is None:
        return "–"
    digits = 1 if abs(value) >= 10 else 2
    return f"{value:z.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def compared(arms: dict[Any, Arm], metric: str) -> str:
    """One sentence: both ends, and whether they differ by more than twice the standard error of the difference."""
    known = {name: arm for name, arm in arms.items() if arm.mean(metric) is not None}
    if len(known) < 2:
        return ""
    if numeric(known):
        first, last = (known[name] for name in (min(known), max(known)))
        if shown(first, metric) == shown(last, metric):
            return f"The {label(metric)} is {shown(first, metric)} at {min(known):g} and at {max(known):g}."
        ends = f"from {shown(first, metric)} at {min(known):g} to {shown(last, metric)} at {max(known):g}"
        verb = {True: "rises", False: "falls", None: "goes"}[_direction(first, last, metric)]
        return f"The {label(metric)} {verb} {ends}{caveat(first, last, metric)}."
    best = max(known, key=lambda name: known[name].mean(metric) or 0.0)
    least = min(known, key=lambda name: known[name].mean(metric) or 0.0)
    high, low = known[best], known[least]
    if best == least or shown(high, metric) == shown(low, metric):
        return f"The {label(metric)} is {shown(high, metric)} for all."
    return (
        f"The {label(metric)} is highest with {best} ({shown(high, metric)}) and lowest with {least} "
        f"({shown(low, metric)}){caveat(low, high, metric)}."
    )


def paired(sides: list[tuple[Arm, Arm]], metric: str, ends: str) -> str:
    """Of pairs of arms (low end, high end) that are alike in all else: the change between them, without a full stop."""
    both = [
        (a, b) for low, high in sides if (a := low.mean(metric)) is not None and (b := high.mean(metric)) is not None
    ]
    changes = [b - a for a, b in both]
    if not changes:
        return ""
    middle = mean(changes)
    start = f"{ends} the {label(metric)} changes by {middle:+.2f}"
    if len(changes) < 2:
        return f"{start} (one pair: not conclusive)"
    error = stdev(changes) / math.sqrt(len(changes))
    doubt = "" if abs(middle) > 2 * error else ", within what the settings of the others scatter"
    return f"{start} ± {error:.2f}{doubt}"


def _direction(first: Arm, last: Arm, metric: str) -> bool | None:
    a, b = first.mean(metric) or 0.0, last.mean(metric) or 0.0
    return None if a == b else b > a


def caveat(a: Arm, b: Arm, metric: str) -> str:
    """What is to be added to a difference between two arms; empty where it is clear."""
    x, y = a.values(metric), b.values(metric)
    if len(x) < 2 or len(y) < 2:
        return ", one seed each: not conclusive" if len(x) == len(y) == 1 else ", too few seeds to be sure"
    error = math.sqrt((a.spread(metric) or 0.0) ** 2 / len(x) + (b.spread(metric) or 0.0) ** 2 / len(y))
    difference = abs(sum(x) / len(x) - sum(y) / len(y))
    return "" if difference > 2 * error else ", within what the seeds scatter"


def first_to_hack(arms: dict[Any, Arm]) -> str:
    """Which arm's hacking index passed its threshold first, and in how many of its seeds."""
    told = []
    for name, arm in arms.items():
        if not any(run.curve("hacking/index") for run in arm.runs):
            continue
        steps = sorted(step for run in arm.runs if (step := run.onset) is not None)
        told.append((steps[0] if steps else math.inf, name, len(steps), len(arm.runs)))
    if not told:
        return ""
    hacked = sorted((t for t in told if t[0] < math.inf), key=lambda t: t[0])
    if not hacked:
        runs = [run for arm in arms.values() for run in arm.runs]
        high = max(value for run in runs for _, value in run.curve(f"hacking/{run.flagged_by}"))
        line = min(run.config.get("stop.hacking_index", 1.0) for run in runs)
        if high < line:
            where = " in every run" if len(runs) > 1 else ""
            return f"The hacking index stayed below its threshold{where}."
        return f"Hacking was not flagged: the index reached {high:.2f}, but not at two validations in a row."
    said = ", ".join(f"{name} from step {step} ({count} of {total} seeds)" for step, name, count, total in hacked)
    clean = [str(name) for step, name, _, _ in told if step == math.inf]
    return f"Hacking was flagged with {said}" + (f"; never with {', '.join(clean)}." if clean else ".")
