"""Sections of the report: a question, the answer from the data, charts, tables, samples."""

from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from rlhf_cli.data.lexicon import vader_words
from rlhf_cli.evaluation.win_rate import UNTRAINED, earned_moods, moods, who, wins
from rlhf_cli.report.answers import compared, first_to_hack, golds, label, own_metrics, paired, shown
from rlhf_cli.report.chart import Chart, Series
from rlhf_cli.report.curves import band, curve_chart, effect_chart, frontier, within
from rlhf_cli.report.knobs import KNOBS, Arm, Comparison, numeric, other_keys, told_apart
from rlhf_cli.report.runs import Run
from rlhf_cli.tracking.text import printable

CURVES = {
    "actor": ("val/score", "hacking/index", "val/repetition", "val/kl"),
    "reward model": ("val/score", "val/gold_score", "val/repetition", "hacking/index"),
    "n-gram penalty": ("val/score", "val/repetition", "val/gold_score"),
    "prefixes": ("val/score", "val/kl"),
    "algorithm": ("val/score", "val/kl"),
}
ENDS = ("val/score", "val/kl", "train/clipfrac", "val/repetition")
"""What a numeric knob is drawn against."""
OUTCOMES = ("val/score", "val/kl", "val/repetition")
"""What a sweep is about."""
CLASSES = ("positive", "neutral", "negative")
COLUMNS = (
    "val/score", "val/gold_score", "val/kl", "val/repetition", "val/distinct_2", "val/response_length", "hacking/index",
)  # fmt: skip
SHOWN_PROMPTS = 3

Piece = tuple[str, str]
"""Text and its mood: positive, negative or ""."""


Row = list[str | list[Piece]]
"""A cell is text, or coloured pieces of it."""


@dataclass(frozen=True)
class Table:
    caption: str
    columns: list[str]
    rows: list[Row]

    @property
    def folded(self) -> bool:
        """Whether the page shows it when asked: many rows, sooner where they hold texts."""
        return len(self.rows) > (16 if all(isinstance(cell, str) for row in self.rows for cell in row) else 8)


@dataclass(frozen=True)
class Section:
    title: str
    question: str
    answer: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    @property
    def legend(self) -> list[Series]:
        """One for all charts that draw the same lines: those of the chart with the most; [] where each has its own."""
        several = [chart.series for chart in self.charts if chart.legend and len(chart.series) > 1]
        widest = max(several, key=len, default=[])
        return widest if sum(_looks(series) <= _looks(widest) for series in several) > 1 else []

    def covered(self, chart: Chart) -> bool:
        """Whether the section's legend speaks for this chart."""
        return _looks(chart.series) <= _looks(self.legend)


def _looks(series: list[Series]) -> set[tuple[str, int, str | None]]:
    return {(one.name, one.style, one.dash) for one in series}


def painted(text: str) -> list[Piece]:
    """A text with the moods of its words by the lexicon."""
    return moods(printable(text), vader_words())


def arm_table(arms: dict[Any, Arm], knob: str) -> Table:
    """One row an arm: its last values, its seeds, its seconds."""
    rows: list[Row] = []
    outcomes = (*COLUMNS[:2], *golds(arms.values()), *COLUMNS[2:], *own_metrics(arms.values()))
    for name, arm in arms.items():
        onset = ", ".join(str(run.onset) if run.onset is not None else "–" for run in arm.runs)
        seconds = mean(run.seconds for run in arm.runs)
        ends = [shown(arm, metric) for metric in outcomes]
        rows.append([str(name), *ends, onset, str(len(arm.runs)), f"{seconds:.0f}"])
    columns = [knob, *map(label, outcomes), "hacking from step (by seed)", "seeds", "seconds"]
    return Table("Last validation, mean ± standard deviation over seeds", columns, rows)


def samples_table(arms: dict[Any, Arm], knob: str, caption: str) -> Table | None:
    """The same prompts under each arm at the first, a middle and the last validation (first seed)."""
    rows: list[Row] = []
    for name, arm in arms.items():
        samples = arm.runs[0].samples
        steps = sorted({row["step"] for row in samples})
        for step in dict.fromkeys([*steps[:1], *steps[len(steps) // 2 : len(steps) // 2 + 1], *steps[-1:]]):
            for row in [r for r in samples if r["step"] == step][:SHOWN_PROMPTS]:
                said: Row = [printable(row["prefix"]), painted(row["response"]), f"{row['score']:.2f}"]
                rows.append([str(step), str(name), *said])
    return Table(caption, ["step", knob, "prompt", "response", "score"], rows) if rows else None


def same_responses(arms: dict[Any, Arm]) -> Table | None:
    """Validation at step 0: the same responses under each reward model, where the arms share them."""
    first = {str(name): [r for r in arm.runs[0].samples if r["step"] == 0] for name, arm in arms.items()}
    texts = {tuple((r["prefix"], r["response"]) for r in rows) for rows in first.values()}
    if len(texts) != 1 or not next(iter(texts)):
        return None
    rows: list[Row] = []
    for i, (prefix, response) in enumerate(list(next(iter(texts)))[:8]):
        rows.append([printable(prefix), painted(response), *(f"{mine[i]['score']:.2f}" for mine in first.values())])
    return Table("Before training: the same responses under each reward model", ["input", "output", *first], rows)


def trimmed(arms: dict[Any, Arm]) -> dict[Any, Arm]:
    """Reward models without the text that they read, where all read the same."""
    read = {arm.config["reward.text"] for arm in arms.values()}
    if len(read) > 1:
        return arms
    end = f" on {read.pop()}"
    return {name.removesuffix(end) if isinstance(name, str) else name: arm for name, arm in arms.items()}


def section(comparison: Comparison) -> Section:
    """What one comparison shows."""
    knob, arms = comparison.knob, trimmed(comparison.arms)
    title = knob.name + (f" ({comparison.context})" if comparison.context else "")
    ordered = numeric(arms)

    def named(metric: str) -> str:
        return f"{label(metric)} by {title}"

    drawn: list[Chart | None] = []
    asked: tuple[str, ...] = ("val/score", "val/gold_score", "val/kl", "val/repetition")
    if ordered:
        drawn += [effect_chart(arms, metric, knob.name, title=named(metric)) for metric in ENDS]
        drawn.append(frontier(arms, title=f"frontier by {title}"))
        asked = ENDS
    else:
        curves = CURVES.get(knob.name, ("val/score", "val/kl"))
        drawn += [curve_chart(arms, metric, title=named(metric)) for metric in curves]
        if knob.name == "actor":
            titles = {c: f"score after {c} prefixes, by {title}" for c in CLASSES}
            drawn += [curve_chart(arms, f"val/score/{c}", title=titles[c]) for c in CLASSES]
        if knob.name == "algorithm":
            drawn.append(frontier(arms, title=f"frontier by {title}"))
        asked = tuple(dict.fromkeys((*curves[:3], "val/kl")))
    sentences = [compared(arms, metric) for metric in asked if metric != "hacking/index"]
    answer = " ".join(s for s in [*sentences, first_to_hack(arms)] if s)
    if knob.name == "algorithm" and len({arm.config["algo.beta"] for arm in arms.values()}) > 1:
        told = ", ".join(f"{name} {arm.config['algo.beta']:g}" for name, arm in arms.items())
        answer += f" Their betas differ, too: {told}."
    tables = [arm_table(arms, knob.name)]
    if knob.name == "reward model" and (shared := same_responses(arms)):
        tables.append(shared)
    if not ordered and (read := samples_table(arms, knob.name, "The same prompts, the same random numbers")):
        tables.append(read)
    return Section(title, knob.question, answer, [c for c in drawn if c], tables)


def grid(found: list[Comparison]) -> Section:
    """A numeric knob that was crossed with others: a line for each setting of the others, the answer over all."""
    knob = found[0].knob
    settings = sorted({setting for comparison in found for setting in comparison.arms})
    drawn = []
    for metric in ENDS:
        series = []
        for style, comparison in enumerate(found):
            points = [
                (float(settings.index(s)), arm) for s, arm in comparison.arms.items() if arm.mean(metric) is not None
            ]
            if points:
                y = [arm.mean(metric) or 0.0 for _, arm in points]
                series.append(Series(comparison.context, [x for x, _ in points], y, None, style))
        if series:
            title = f"{label(metric)} by {knob.name}"
            drawn.append(Chart(title, knob.name, label(metric), series, ticks=[f"{s:g}" for s in settings]))
    low, high = settings[0], settings[-1]
    sides = [(c.arms[low], c.arms[high]) for c in found if low in c.arms and high in c.arms]
    told = [paired(sides, metric, f"from {low:g} to {high:g}") for metric in ENDS]
    said = "; ".join(filter(None, told))
    answer = f"All else alike, {said} (mean ± standard error over {len(sides)} settings of the others)." if said else ""
    return Section(knob.name, knob.question, answer, drawn)


def sections_for(comparisons: list[Comparison]) -> list[Section]:
    """One section a comparison; one for all of a numeric knob that was crossed with others."""
    made: list[Section] = []
    by_knob: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_knob.setdefault(comparison.knob.name, []).append(comparison)
    for mine in by_knob.values():
        ordered = numeric(s for c in mine for s in c.arms)
        made += [grid(mine)] if ordered and len(mine) > 2 else [section(c) for c in mine]
    return made


def swept(arms: list[Arm]) -> list[tuple[str, list[float]]]:
    """The knobs that were set to two or more numbers, each with its setting in every arm."""
    found = []
    for knob in KNOBS:
        settings = [knob.setting(arm.config) for arm in arms]
        if len(set(map(repr, settings))) > 1 and numeric(settings):
            found.append((knob.name, [float(s) for s in settings]))
    return found


def parallel(arms: list[Arm], knobs: list[tuple[str, list[float]]]) -> Chart | None:
    """Parallel coordinates: each setting a line through its knobs and its outcomes, each axis from its least to its
    greatest value; colour by the score's third."""
    kept = [i for i, arm in enumerate(arms) if all(arm.mean(m) is not None for m in OUTCOMES)]
    if len(kept) < 2:
        return None
    axes = [(name, [values[i] for i in kept]) for name, values in knobs]
    axes += [(label(metric), [arms[i].mean(metric) or 0.0 for i in kept]) for metric in OUTCOMES]
    scores = sorted(axes[len(knobs)][1])
    series = []
    for at, i in enumerate(kept):
        values = [column[at] for _, column in axes]
        lows, highs = ([limit(column) for _, column in axes] for limit in (min, max))
        heights = [(v - a) / (b - a) if b > a else 0.5 for v, a, b in zip(values, lows, highs, strict=True)]
        third = min(2, 3 * scores.index(values[len(knobs)]) // len(scores))
        words = [f"{name} {value:.3g}" for (name, _), value in zip(axes, values, strict=True)]
        series.append(
            Series(arm_name(arms[i], arms), [float(n) for n in range(len(axes))], heights, None, third, words)
        )
    names = [f"{name}\n{_short(min(column))} – {_short(max(column))}" for name, column in axes]
    return Chart("knobs and outcomes", "", "least to greatest", series, ticks=names, legend=False)


def _short(value: float) -> str:
    """Two digits: the axes' labels stand side by side."""
    return f"{round(value, 2):.2g}"


def effects(arms: list[Arm], knobs: list[tuple[str, list[float]]]) -> Table:
    """What each setting of each knob gave, over all settings of the others: mean ± standard error over runs."""
    rows: list[Row] = []
    for name, settings in knobs:
        for setting in sorted(set(settings)):
            mine = [arm for arm, value in zip(arms, settings, strict=True) if value == setting]
            cells = []
            for metric in OUTCOMES:
                values = [v for arm in mine for v in arm.values(metric)]
                error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
                cells.append((f"{mean(values):.3f}" if values else "–") + (f" ± {error:.3f}" if error else ""))
            rows.append([name, f"{setting:g}", str(sum(len(arm.runs) for arm in mine)), *cells])
    return Table(
        "Each knob over all others, mean ± standard error", ["knob", "at", "runs", *map(label, OUTCOMES)], rows
    )


def overview(runs: list[Run], arms: list[Arm]) -> Section:
    """Every run, or the one there is."""
    states: dict[str, int] = {}
    for run in runs:
        states[run.state] = states.get(run.state, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    names = {arm_name(arm, arms): arm for arm in arms}
    answer = f"{len(runs)} runs of {len(arms)} settings: {told}. " if len(runs) > 1 else ""
    if len(arms) == 1:
        arm = arms[0]
        starts = [curve[0][1] for run in arm.runs if (curve := run.curve("val/score"))]
        score, kl = shown(arm, "val/score"), shown(arm, "val/kl")
        answer += f"The score went from {mean(starts):.2f} to {score}, at a KL of {kl} nats. "
        answer += first_to_hack({"this setting": arm})
    one = sum(len(arm.runs) for arm in arms) == 1
    every = "" if one else ", all runs"
    drawn: list[Chart | None] = []
    if len(arms) <= len(KNOBS):
        metrics = ("val/score", "val/gold_score", "val/kl", "hacking/index", "val/repetition", "val/response_length")
        asked = [*metrics[:2], *golds(arms), *metrics[2:], *own_metrics(arms)]
        drawn = [curve_chart(names, metric, title=f"{label(metric)}{every}") for metric in asked]
        classes = [band(arms[0], f"val/score/{c}", c, i) for i, c in enumerate(CLASSES)] if len(arms) == 1 else []
        if found := [s for s in classes if s]:
            drawn.append(
                Chart("score by the class of the prefix", "step", "score", found, within=within("val/score", found))
            )
    tables = [arm_table(names, "setting")]
    if len(knobs := swept(arms)) > 1:
        drawn.append(parallel(arms, knobs))
        tables.append(effects(arms, knobs))
    if len(arms) == 1 and (read := samples_table(names, "setting", "What it wrote")):
        tables.append(read)
    title, asked_of = ("The run", "How did it go?") if one else ("All runs", "What was run, and how did it end?")
    return Section(title, asked_of, answer.strip(), [c for c in drawn if c], tables)


def arm_name(arm: Arm, arms: list[Arm]) -> str:
    """The settings of the knobs, and the keys of no knob, that vary among these arms."""
    if len(arms) == 1:
        return "this run"
    said = []
    for knob in KNOBS:
        settings = list(dict.fromkeys(knob.setting(other.config) for other in arms))
        if len(settings) > 1:
            setting = told_apart(settings)[knob.setting(arm.config)]
            told = f"{knob.name} {setting:g}" if isinstance(setting, int | float) else str(setting)
            said.append(f"penalty {told}" if knob.name == "n-gram penalty" else told)
    if len({other.config["reward.text"] for other in arms}) == 1:
        said = [told.removesuffix(f" on {arm.config['reward.text']}") for told in said]
    said += [f"{key} {arm.config.get(key)}" for key in other_keys(arms)]
    return ", ".join(said)


def probe_section(content: dict[str, Any]) -> Section:
    """How often chat wrapping flips each reward model."""
    rows: list[Row] = []
    told = []
    for r in content["rates"]:
        if r["wrapping"] == "bare":
            continue
        interval = f"{r['flip_low']:.3f} to {r['flip_high']:.3f}"
        rows.append([r["model"], r["wrapping"], f"{r['flips']} of {r['texts']}", f"{r['flip_rate']:.3f}", interval])
        told.append(f"{r['model']} in {r['wrapping']}: {100 * r['flip_rate']:.1f} %")
    table = Table(
        "Labels that differ from those of the same text without the chat",
        ["model", "wrapping", "flips", "rate", "95 %"],
        rows,
    )
    readings = [r for r in content["readings"] if r["text"] == 0]
    columns = ["model", "wrapping", "label", "negative", "neutral", "positive"]
    example: list[Row] = []
    for r in readings:
        example.append([r["model"], r["wrapping"], r["label"], *(f"{r['probabilities'][c]:.2f}" for c in columns[3:])])
    words = printable(content["texts"][0])[:300] if content["texts"] else ""
    return Section(
        "Reward model probe",
        "Does wrapping a text as a chat flip a reward model's label?",
        "Labels that the wrapping flips: " + "; ".join(told) + ".",
        tables=[table, Table(f"One text: {words}", columns, example)],
    )


def compare_section(content: dict[str, Any]) -> Section:
    """Two policies side by side."""
    names = (content["a"], content["b"])
    winner, trained = who(names), names[1] == UNTRAINED
    said = []
    for judge, found in content["win_rate"].items():
        rate, low, high = (100 * share for share in wins(found, winner))
        name = "the trained policy" if trained else winner
        said.append(f"under the {judge} judge, {name} wins {rate:.0f} % (95 % interval {low:.0f} to {high:.0f})")
    told = "; ".join(said)
    rows: list[Row] = []
    for a, b in zip(*content["typed"], strict=True):
        sides: Row = [cell for side in (a, b) for cell in (earned_words(side), f"{side['score']:.2f}")]
        rows.append([printable(a["prefix"]), *sides])
    judges: list[Row] = []
    for judge, found in content["win_rate"].items():
        rate, low, high = wins(found, winner)
        means = (f"{found['mean_a']:.3f}", f"{found['mean_b']:.3f}")
        judges.append([judge, *means, f"{rate:.2f}", f"{low:.2f} to {high:.2f}"])
    return Section(
        "Before and after" if trained else "Two policies",
        f"A: {printable(content['a'])}. B: {printable(content['b'])}. Which is better?",
        told[:1].upper() + told[1:] + ".",
        tables=[
            Table("On the test prompts", ["judge", "mean A", "mean B", f"{winner} wins", "95 % interval"], judges),
            Table("The same prompts, the same random numbers", ["prompt", "A", "score", "B", "score"], rows),
        ],
    )


def earned_words(row: dict[str, Any]) -> list[Piece]:
    """A response with the moods of its words, and which of them earned some of the score, where that was asked."""
    if "earned" not in row:
        return painted(row["response"])
    found = earned_moods(row["earned"], vader_words())
    return [(printable(p) or " ", f"{mood} earned".strip() if e and not p.isspace() else mood) for p, mood, e in found]
