"""The run as a person sees it: a live display on a terminal, plain lines in a log file."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from rlhf_cli.tracking.glance import Curves
from rlhf_cli.tracking.text import printable

SECONDS_BETWEEN_LINES = 10.0
SAMPLE_LENGTH = 200
CLASSES = ("positive", "neutral", "negative")
# What a line calls a metric, the metric, and its number format.
TRAIN = (
    ("score", "train/score", ".2f"),
    ("reward", "train/reward", ".2f"),
    ("kl", "train/kl", ".2f"),
    ("len", "train/response_length", ".1f"),
    ("repetition", "train/repetition", ".2f"),
    ("pairwise loss", "train/pairwise_loss", ".3f"),
    ("accuracy", "train/pairwise_accuracy", ".2f"),
    ("cross-entropy", "train/cross_entropy", ".3f"),
    ("held-out accuracy", "val/accuracy", ".3f"),
    ("macro F1", "val/macro_f1", ".3f"),
)

GOLD = "val/gold_score"


class ConsoleTracker:
    """Shows progress on `console`: live on a terminal; without one, a line at most each 10 s and at validations.

    `start_step` is the step a resumed run goes on from, so that speed and time left count only what runs now.
    """

    def __init__(self, total_steps: int, console: Console | None = None, start_step: int = 0) -> None:
        self._total, self._start = total_steps, start_step
        self._console = console or Console()
        # FORCE_COLOR makes rich take a log file for a terminal
        seen = console is not None or sys.stdout.isatty()
        self._is_live = seen and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._durations: deque[float] = deque(maxlen=20)
        self._last_log = time.monotonic()
        self._last_line = float("-inf")
        self._train, self._val, self._sample = "", "", ""
        self._curves = Curves()
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[pace]}")
        )
        self._bar = self._progress.add_task("train", total=total_steps, completed=start_step, pace="")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._time(step)
        self._curves.add(metrics)
        self._train = train_text(metrics) or self._train
        validated, examined = "val/score" in metrics, "val/macro_f1" in metrics
        if validated:
            self._val = validation_text(step, metrics)
        if self._is_live:
            self._show(step)
        else:
            self._write(step, bool(train_text(metrics)), validated, examined)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """One of a positive prefix, if there is any: the furthest from what is wanted."""
        likely = [row for row in rows if row["class"] == "positive"] or rows
        self._sample = sample_text(likely[0]) if rows else ""

    def message(self, text: str) -> None:
        self._print(printable(text))

    def alert(self, title: str, text: str) -> None:
        style = "bold red" if self._is_live else ""
        self._console.print(Text(printable(f"{title}: {text}"), style), soft_wrap=True)

    def finish(self, state: str) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _time(self, step: int) -> None:
        now = time.monotonic()
        if step > self._start:  # step 0 is the validation of the untrained actor
            self._durations.append(now - self._last_log)
        self._last_log = now

    def _pace(self, step: int) -> str:
        if not self._durations:
            return ""
        seconds = sum(self._durations) / len(self._durations)
        pace = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
        return f"{pace} s/step  eta {clock(seconds * (self._total - step))}"

    def _write(self, step: int, trained: bool, validated: bool, examined: bool) -> None:
        due = time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if trained and (due or validated or examined or step == self._total):
            self._print(join(f"step {step}/{self._total}", self._train, self._pace(step)))
            self._last_line = time.monotonic()
        if validated:
            self._print(self._val)
            if self._sample:
                self._print(self._sample)

    def _show(self, step: int) -> None:
        self._progress.update(self._bar, completed=step, pace=self._pace(step))
        if self._live is None:
            self._live = Live(get_renderable=self._display, console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.refresh()

    def _display(self) -> RenderableType:
        # Text, not str: a str would be parsed for markup, and a sample is written by a model.
        lines = [Text(line) for line in (self._train, self._val, self._sample) if line]
        return Group(self._progress, *lines[:1], self._curves, *lines[1:])

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def train_text(metrics: Mapping[str, float]) -> str:
    """`score 0.61  reward 0.58  kl 1.20 …`, of what there is."""
    return join(*(f"{label} {metrics[key]:{form}}" for label, key, form in TRAIN if key in metrics))


def validation_text(step: int, metrics: Mapping[str, float]) -> str:
    """`validation at 20: score 0.62 (positive 0.50 neutral 0.60 negative 0.80) repetition 0.01`."""
    classes = [f"{name} {metrics[key]:.2f}" for name in CLASSES if (key := f"val/score/{name}") in metrics]
    text = f"validation at {step}: score {metrics['val/score']:.2f}"
    if GOLD in metrics:
        judges = {key.removeprefix(f"{GOLD}/"): value for key, value in metrics.items() if key.startswith(f"{GOLD}/")}
        text += " gold " + (" ".join(f"{n} {v:.2f}" for n, v in judges.items()) or f"{metrics[GOLD]:.2f}")
    text += f" kl {metrics['val/kl']:z.1f}" if "val/kl" in metrics else ""
    text += f" hacking {metrics['hacking/index']:.2f}" if "hacking/index" in metrics else ""
    text += f" ({' '.join(classes)})" if classes else ""
    return text + (f" repetition {metrics['val/repetition']:.2f}" if "val/repetition" in metrics else "")


def sample_text(row: Mapping[str, Any]) -> str:
    """One sample on one line, cut to a readable length."""
    text = printable(f"{row['prefix']} | {row['response']}")
    text = text if len(text) <= SAMPLE_LENGTH else text[: SAMPLE_LENGTH - 1] + "…"
    return f"sample ({printable(str(row['class']))} prefix, score {row['score']:.2f}): {text}"


def clock(seconds: float) -> str:
    """`0:52`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def join(*parts: str) -> str:
    """The parts that there are, two spaces apart."""
    return "  ".join(part for part in parts if part)
