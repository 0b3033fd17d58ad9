"""Charts as data, drawn twice: as SVG inside the page (it follows light and dark), and by matplotlib for a paper."""

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

# Okabe & Ito's colours, which the colour-blind tell apart, and a dash each for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 42


@dataclass(frozen=True)
class Series:
    """One line or one set of dots."""

    name: str
    x: list[float]
    y: list[float]
    spread: list[float] | None = None
    """Half the height of the band around y."""
    style: int = 0
    """Which colour and dash."""
    words: list[str] | None = None
    """What each point says when pointed at; None: its numbers."""
    dash: str | None = None
    """An SVG dash pattern, "" for a whole line; None: the style's."""
    around: list[tuple[float, float]] | None = None
    """The band's lower and upper edge, where it is no spread around y."""

    @property
    def colour(self) -> str:
        return COLOURS[self.style % len(COLOURS)]

    @property
    def pattern(self) -> str:
        return DASHES[self.style // 2 % len(DASHES)] if self.dash is None else self.dash

    @property
    def edges(self) -> list[tuple[float, float]] | None:
        """(low, high) at each point, if there is a band."""
        if self.around or self.spread is None:
            return self.around
        return [(y - e, y + e) for y, e in zip(self.y, self.spread, strict=True)]


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    lines: bool = True
    """False: dots only."""
    ticks: list[str] | None = None
    """Names for x = 0, 1, 2 … where x is no number."""
    legend: bool = True
    within: tuple[float, float] | None = None
    """What the y axis shows at least, so that slopes of different charts compare and noise does not fill one."""
    threshold: float | None = None
    """A line across."""
    note: str = ""
    """What its caption adds."""
    number: int = 1
    """Of the charts whose files would have one name."""

    @property
    def keys(self) -> list[Series]:
        """What a legend shows: of the lines of one name, the first."""
        return list({one.name: one for one in reversed(self.series)}.values())[::-1]

    @property
    def name(self) -> str:
        """For a file."""
        plain = "".join(c if c.isalnum() else "_" for c in self.title.lower()).strip("_")[:80]
        return plain if self.number == 1 else f"{plain}_{self.number}"

    @property
    def whole(self) -> bool:
        """Whether x counts something, as steps are counted."""
        return self.x_label == "step"

    def limits(self) -> tuple[float, float, float, float]:
        """(least x, greatest x, least y, greatest y) with a little room."""
        xs = [x for s in self.series for x in s.x] + ([0.0] if self.whole else [])  # all charts of steps begin alike
        ys = [y for s in self.series for y in (*s.y, *(edge for both in s.edges or () for edge in both))]
        ys += self.within or ()
        low, high, bottom, top = min(xs), max(xs), min(ys), max(ys)
        pad_x = (high - low) * (0.07 if self.ticks else 0.03) or 0.5
        pad_y = (top - bottom) * 0.06 or max(abs(top) * 0.1, 0.05)
        return low - pad_x, high + pad_x, bottom - pad_y, top + pad_y


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers inside [low, high], about `count` of them; `whole`: no fractions, as of training steps."""
    raw = max((high - low) / count, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    rounds = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
    step = next(m * power for m in rounds if m * power >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def svg(chart: Chart) -> str:
    """The chart as an SVG element; every point says its numbers when pointed at, and names are text, never markup."""
    x0, x1, y0, y1 = chart.limits()
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def px(x: float) -> float:
        return round(LEFT + (x - x0) / (x1 - x0) * (right - LEFT), 1)

    def py(y: float) -> float:
        return round(floor - (y - y0) / (y1 - y0) * (floor - TOP), 1)

    def line(kind: str, xa: float, ya: float, xb: float, yb: float) -> str:
        return f'<line class="{kind}" x1="{xa}" y1="{ya}" x2="{xb}" y2="{yb}"/>'

    def text(kind: str, x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(chart))}">']
    for y in nice_ticks(y0, y1):
        out += [line("grid", LEFT, py(y), right, py(y)), text("tick", LEFT - 6, py(y) + 4, f"{y:g}", "end")]
    for x, words in _x_ticks(chart, x0, x1):
        out += [text("tick", px(x), floor + 16 + 12 * row, part) for row, part in enumerate(words.split("\n"))]
    if chart.threshold is not None:
        across, warns = py(chart.threshold), f"warns at {chart.threshold:g}"
        out += [line("threshold", LEFT, across, right, across), text("tick", right, across - 4, warns, "end")]
    out += [line("axis", LEFT, floor, right, floor), text("label", (LEFT + right) / 2, HEIGHT - 6, chart.x_label)]
    out.append(text("label", 8, TOP - 10, chart.y_label, "start"))
    for s in chart.series:
        out.append(f'<g class="series" data-series="{escape(s.name)}" style="--c:{s.colour}">')
        joined, edges = chart.lines and len(s.x) > 1, s.edges
        if edges and joined:
            around = [(x, high) for x, (_, high) in zip(s.x, edges, strict=True)]
            around += [(x, low) for x, (low, _) in reversed(list(zip(s.x, edges, strict=True)))]
            corners = " ".join(f"{px(x)},{py(y)}" for x, y in around)
            out.append(f'<polygon class="band" points="{corners}"/>')
        if joined:
            path = " ".join(f"{px(x)},{py(y)}" for x, y in zip(s.x, s.y, strict=True))
            out.append(f'<polyline class="line" stroke-dasharray="{s.pattern}" points="{path}"/>')
        for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            low, high = edges[i] if edges else (y, y)
            if high > low and not joined:
                out.append(line("whisker", px(x), py(high), px(x), py(low)))
            at = chart.ticks[int(x)] if chart.ticks else f"{x:.4g}"
            numbers = f"{chart.x_label} {at}, {chart.y_label} {y:.4g}" + _reach(s, i)
            words = f"{s.name}: {s.words[i] if s.words else numbers}"
            dot = f'<circle cx="{px(x)}" cy="{py(y)}" r="{3 if joined else 4.5}">'
            out.append(f"{dot}<title>{escape(words)}</title></circle>")
        out.append("</g>")
    return "".join(out) + "</svg>"


def _reach(s: Series, i: int) -> str:
    """How far the band goes at a point, in words."""
    if s.around:
        return f" ({s.around[i][0]:.2g} to {s.around[i][1]:.2g})"
    return f" ± {s.spread[i]:.2g}" if s.spread and s.spread[i] else ""


def _x_ticks(chart: Chart, low: float, high: float) -> list[tuple[float, str]]:
    if chart.ticks:
        return [(float(i), label) for i, label in enumerate(chart.ticks)]
    return [(x, f"{x:g}") for x in nice_ticks(low, high, whole=chart.whole)]


def _spoken(chart: Chart) -> str:
    """What a screen reader says of the chart."""
    ends = "; ".join(f"{s.name} from {s.y[0]:.3g} to {s.y[-1]:.3g}" for s in chart.series if s.y)
    return f"{chart.title}: {chart.y_label} by {chart.x_label}. {ends}."


def save(chart: Chart, folder: Path) -> None:
    """PNG and SVG for a paper. matplotlib draws them: what it is made for."""
    from rlhf_cli.report.figure import drawing

    with drawing(svg_fonttype="none", font_size=9, svg_hashsalt="rlhf", text_parse_math=False) as plt:
        figure, axes = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
        for s in chart.series:
            _draw(axes, s, chart)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        if chart.ticks:
            axes.set_xticks(range(len(chart.ticks)), chart.ticks, fontsize=7 if len(chart.ticks) > 5 else 9)
        elif chart.whole:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(chart.limits()[2:])
        if chart.threshold is not None:
            axes.axhline(chart.threshold, color="0.4", linewidth=0.8, linestyle="--")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(chart.keys) > 1 and chart.legend:
            lines = axes.get_legend_handles_labels()[0]
            shown = [line for one, line in zip(chart.series, lines, strict=True) if one in chart.keys]
            axes.legend(shown, [one.name for one in chart.keys], frameon=False, fontsize=7)
        if chart.note:
            figure.supxlabel(chart.note, fontsize=7)
        for kind in ("png", "svg"):
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(folder / f"{chart.name}.{kind}", dpi=200, metadata=metadata)
        plt.close(figure)


def _draw(axes: Any, s: Series, chart: Chart) -> None:
    style: Any = (0, tuple(float(d) / 2 for d in s.pattern.split())) if s.pattern else "-"
    if not chart.lines:
        axes.errorbar(s.x, s.y, yerr=s.spread, fmt="o", color=s.colour, label=s.name)
        return
    axes.plot(s.x, s.y, color=s.colour, linestyle=style, marker="o", markersize=2.5, linewidth=1.4, label=s.name)
    if s.edges:
        low, high = zip(*s.edges, strict=True)
        axes.fill_between(s.x, low, high, color=s.colour, alpha=0.15, linewidth=0)
