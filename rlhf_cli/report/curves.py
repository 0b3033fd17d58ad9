"""Curves over steps, and what a knob's settings lead to, as charts."""

from statistics import mean, stdev
from typing import Any

from rlhf_cli.report.answers import label
from rlhf_cli.report.chart import Chart, Series
from rlhf_cli.report.knobs import Arm
from rlhf_cli.report.runs import Run


def band(arm: Arm, metric: str, name: str, style: int) -> Series | None:
    """Mean and standard deviation over seeds at every step that all of them validated; of one seed's hacking index,
    its interval."""
    curves = [dict(run.curve(metric)) for run in arm.runs]
    curves = [curve for curve in curves if curve]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    columns = [[curve[step] for curve in curves] for step in steps]
    spread = [stdev(column) for column in columns] if len(curves) > 1 else None
    around = interval(arm.runs[0], steps) if metric == "hacking/index" and spread is None else None
    return Series(name, [float(s) for s in steps], [mean(c) for c in columns], spread, style, around=around)


def interval(run: Run, steps: list[int]) -> list[tuple[float, float]] | None:
    """The hacking index's interval over the prompts; None where a validation lacks it, as older runs' do."""
    low, high = (dict(run.curve(f"hacking/index_{end}")) for end in ("low", "high"))
    return [(low[step], high[step]) for step in steps] if low.keys() & high.keys() >= set(steps) else None


def curve_chart(arms: dict[Any, Arm], metric: str, *, title: str) -> Chart | None:
    """One metric over steps, a line an arm."""
    bands = [band(arm, metric, str(name), style) for style, (name, arm) in enumerate(arms.items())]
    series = [s for s in bands if s]
    if not series:
        return None
    warns = {run.config.get("stop.hacking_index") for arm in arms.values() for run in arm.runs}
    threshold = warns.pop() if metric == "hacking/index" and len(warns) == 1 else None
    return Chart(title, "step", label(metric), series, within=within(metric, series), threshold=threshold)


def within(metric: str, series: list[Series]) -> tuple[float, float] | None:
    """Scores, where the reward gives shares, and the hacking index from 0 to 1; lengths from 0; a tenth is little
    repetition."""
    ys = [y for s in series for y in s.y]
    if metric.startswith(("val/score", "val/gold_score", "hacking/index")) and min(ys) >= 0 and max(ys) <= 1:
        return 0.0, 1.0
    if metric == "val/response_length" and max(ys) > 0:
        return 0.0, max(ys)  # else half a token more looks like an explosion
    return (0.0, 0.1) if metric == "val/repetition" else None


def frontier(arms: dict[Any, Arm], *, title: str) -> Chart | None:
    """The path of each arm through (KL, score), over its validations: the score that a KL buys."""
    series = []
    for style, (name, arm) in enumerate(arms.items()):
        kl, score = band(arm, "val/kl", str(name), style), band(arm, "val/score", str(name), style)
        if kl and score and kl.x == score.x:
            series.append(Series(str(name), kl.y, score.y, score.spread, style))
    return Chart(title, "KL to the untrained policy, nats a response", "score", series) if series else None


def effect_chart(arms: dict[Any, Arm], metric: str, knob: str, *, title: str) -> Chart | None:
    """A knob's settings against the last value of a metric."""
    known = [(i, name, arm) for i, (name, arm) in enumerate(arms.items()) if arm.mean(metric) is not None]
    if len(known) < 2:
        return None
    y = [arm.mean(metric) or 0.0 for _, _, arm in known]
    spread = [arm.spread(metric) or 0.0 for _, _, arm in known]
    several = any(len(arm.runs) > 1 for _, _, arm in known)
    numbers = [float(i) for i, _, _ in known]
    return Chart(
        title,
        knob,
        label(metric),
        [Series(knob, numbers, y, spread if several else None, 0)],
        ticks=[str(n) for n in arms],
    )
