"""Tracking: JSONL is the truth, W&B its mirror, the console safe to look at."""

import io
import json
import time
from pathlib import Path

import pytest
from helpers import wbread
from rich.console import Console

from rlhf_cli.tracking.console import ConsoleTracker, clock
from rlhf_cli.tracking.glance import Curves, condensed, sparkline
from rlhf_cli.tracking.jsonl import JsonlTracker, read_jsonl
from rlhf_cli.tracking.text import printable
from rlhf_cli.tracking.trackers import Trackers, make_trackers
from rlhf_cli.tracking.wandb_tracker import WandbTracker, without_secrets

HOSTILE = "good \x1b[31mred\x07\r\n[bold]loud[/bold] [/] \u202eback\u2028\x9b2J end"
ROW = {
    "prompt": "Review: It was",
    "prefix": "It was",
    "response": HOSTILE,
    "class": "neutral",
    "score": 0.25,
    "parts": {"classifier": 0.5, "ngram": -0.25},
}
VALIDATION = {
    "val/score": 0.62,
    "val/score/positive": 0.5,
    "val/score/neutral": 0.6,
    "val/score/negative": 0.8,
    "val/repetition": 0.01,
}


def train_metrics(step: int) -> dict[str, float]:
    """One step's numbers."""
    return {
        "train/score": 0.1 * step,
        "train/reward": 0.58,
        "train/kl": 1.2,
        "train/response_length": 24.1,
        "train/repetition": 0.03,
    }


def drive(trackers: Trackers, start: int = 0) -> None:
    """Three steps, a validation before and after."""
    for step in range(start, 4):
        metrics = train_metrics(step) if step else {}
        if step in (0, 3):
            trackers.samples(step, [ROW])
            metrics |= VALIDATION
        trackers.log(step, metrics)


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose user never logged in to W&B."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


def wandb_tracker(folder: Path, said: list[str], mode: str = "wandb", **changes: object) -> WandbTracker:
    """A tracker with everything named."""
    options: dict = {"project": "rlhf", "entity": None, "name": "test", "group": "sweep-1", "run_id": None}
    options |= {"resume": False} | changes
    return WandbTracker(folder, {"seed": 7, "hf_token": "x"}, mode=mode, notify=said.append, **options)


def offline_file(folder: Path) -> Path:
    """The one W&B file under `folder`."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path


def test_wandb_offline_file_equals_metrics_jsonl(tmp_path: Path, no_account: None) -> None:
    options = {"project": "rlhf", "entity": None, "name": "a run", "group": "sweep-1", "run_id": None}
    trackers = make_trackers(["offline"], tmp_path, {"seed": 7}, steps=3, resume_step=None, **options)
    drive(trackers)
    trackers.finish("done")

    stored = wbread.read(offline_file(tmp_path))
    history = [
        {key: value for key, value in row.items() if key[0] != "_" and key != "samples"} for row in stored["history"]
    ]
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["_step"] for row in stored["history"]] == [line.pop("step") for line in lines] == [0, 1, 2, 3]
    assert history == lines
    assert stored["run"]["group"] == "sweep-1"
    assert stored["run"]["id"] == trackers.wandb_run_id
    assert stored["config"]["seed"] == 7
    assert stored["exit"] == 0

    tables = [
        json.loads(path.read_text()) for path in tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    ]
    assert all(table["columns"] == ["step", "input", "output", "score", "class"] for table in tables)
    expected = [[step, "Review: It was", HOSTILE, 0.25, "neutral"] for step in (0, 3)]
    assert sorted(row for table in tables for row in table["data"]) == expected
    assert [row["_step"] for row in stored["history"] if "samples" in row] == [0, 3]


def test_without_a_key_wandb_is_offline_at_once_and_records_failure(tmp_path: Path, no_account: None) -> None:
    said: list[str] = []
    began = time.monotonic()
    tracker = wandb_tracker(tmp_path, said)
    assert time.monotonic() - began < 40
    tracker.log(1, train_metrics(1))
    tracker.finish("failed")
    assert len(said) == 1
    assert "offline: no API key" in said[0]
    stored = wbread.read(offline_file(tmp_path))
    assert stored["exit"] == 1
    assert "hf_token" not in stored["config"]


def test_without_network_wandb_is_offline_and_a_resumed_run_keeps_its_id(
    tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    said: list[str] = []
    tracker = wandb_tracker(tmp_path, said, run_id="abc123", resume=True)
    tracker.log(21, train_metrics(1))
    tracker.finish("interrupted")
    assert len(said) == 1
    assert "127.0.0.1:9 cannot be reached" in said[0]
    stored = wbread.read(offline_file(tmp_path))
    assert tracker.run_id == stored["run"]["id"] == "abc123"
    assert [row["_step"] for row in stored["history"]] == [21]


def test_a_refused_init_falls_back_and_a_broken_log_ends_only_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    modes: list[str] = []

    class BrokenRun:
        id = "xyz"

        def log(self, *args: object, **kwargs: object) -> None:
            raise BrokenPipeError("the service died")

    def init(mode: str, **options: object) -> BrokenRun:
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("timed out")
        return BrokenRun()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("rlhf_cli.tracking.wandb_tracker.why_offline", lambda: None)
    said: list[str] = []
    tracker = wandb_tracker(tmp_path, said)
    assert modes == ["online", "offline"]
    for step in (1, 2):
        tracker.log(step, {})
    tracker.finish("done")
    assert [text.split(";")[0] for text in said] == [
        "W&B is offline: CommError: timed out",
        "W&B stopped (BrokenPipeError: the service died)",
    ]


def test_secrets_stay_out_of_the_config_and_text_tokens_stay_in() -> None:
    config = {"a": {"api_key": 1, "max_tokens": 2}, "b": [{"password": 3, "level": "token"}], "eos_token": 4}
    assert without_secrets(config) == {"a": {"max_tokens": 2}, "b": [{"level": "token"}], "eos_token": 4}


def test_none_leaves_wandb_out_and_keeps_the_id(tmp_path: Path) -> None:
    options = {"project": "rlhf", "entity": None, "name": None, "group": None, "run_id": "kept"}
    trackers = make_trackers([], tmp_path, {}, steps=3, resume_step=None, **options)
    drive(trackers)
    trackers.finish("done")
    assert trackers.wandb_run_id == "kept"
    assert not (tmp_path / "wandb").exists()


def test_resume_drops_later_and_torn_lines_and_a_fresh_run_starts_anew(tmp_path: Path) -> None:
    first = JsonlTracker(tmp_path)
    drive(Trackers([first]))
    first.finish("failed")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write('{"step": 4, "text": "é'.encode()[:-1])
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]

    resumed = JsonlTracker(tmp_path, resume_step=1)
    assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [0]
    drive(Trackers([resumed]), start=2)
    resumed.finish("done")
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert rows == [{"step": 0} | ROW, {"step": 3} | ROW]
    assert next(iter(rows[0])) == "step"

    JsonlTracker(tmp_path).finish("done")
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_a_number_that_is_none_is_null_and_a_broken_middle_line_is_named(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"train/kl": float("nan"), "train/ratio_max": float("inf"), "train/score": 0.5})
    tracker.finish("done")
    path = tmp_path / "metrics.jsonl"
    assert path.read_text() == '{"step": 1, "train/kl": null, "train/ratio_max": null, "train/score": 0.5}\n'
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_jsonl(path)


def test_without_a_terminal_the_output_is_plain_lines() -> None:
    out = io.StringIO()
    tracker = ConsoleTracker(3, Console(file=out, width=80))
    drive(Trackers([tracker]))
    tracker.message("see [bold]outputs[/bold]")
    tracker.finish("done")
    lines = out.getvalue().splitlines()
    validation = "score 0.62 (positive 0.50 neutral 0.60 negative 0.80) repetition 0.01"
    assert lines[0] == f"validation at 0: {validation}"
    assert lines[2].startswith("step 1/3  score 0.10  reward 0.58  kl 1.20  len 24.1  repetition 0.03  ")
    assert lines[2].endswith("eta 0:00")
    assert lines[3].startswith("step 3/3")  # step 2 came within ten seconds of step 1
    assert lines[4] == f"validation at 3: {validation}"
    assert lines[-1] == "see [bold]outputs[/bold]"
    assert len(lines) == 7


@pytest.mark.parametrize("terminal", [True, False])
def test_model_text_stays_inert(terminal: bool) -> None:
    out = io.StringIO()
    tracker = ConsoleTracker(3, Console(file=out, width=200, force_terminal=terminal, _environ={}))
    drive(Trackers([tracker]))
    tracker.finish("done")
    shown = out.getvalue()
    assert "[bold]loud[/bold] [/]" in shown
    assert not any(bad in shown for bad in ("\x1b[31m", "\x07", "\u202e", "\u2028", "\x9b"))
    assert terminal == ("step 3/3" in shown and "━" in shown)


def test_printable_is_one_line_without_controls() -> None:
    assert printable(HOSTILE) == "good [31mred [bold]loud[/bold] [/] back 2J end"
    assert printable("naïve 🎬\tfilm\ud800") == "naïve 🎬 film"


def test_sparkline_and_clock() -> None:
    assert sparkline([0.0, 0.5, float("nan"), 1.0]) == "▁▅ █"
    assert sparkline([0.3, 0.3]) == "▁▁"
    assert sparkline([]) == ""
    assert [clock(52), clock(3723)] == ["0:52", "1:02:03"]


def test_a_long_curve_is_condensed_to_its_whole_run() -> None:
    assert condensed([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 3) == [1.0, 5.0, 9.0]
    assert condensed([1.0, 2.0], 5) == [1.0, 2.0]
    assert condensed([], 5) == []


@pytest.mark.parametrize("width", [40, 80, 120])
def test_curves_fit_the_terminal(width: int) -> None:
    curves, out = Curves(), io.StringIO()
    for step in range(200):
        curves.add({"train/score": step / 200, "train/kl": 100.0 * step, "train/lr": 1.0})
        curves.add({"val/gold_score": 0.5} if step % 50 == 0 else {})
    console = Console(file=out, width=width, _environ={})
    console.print(curves)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) == (3 if width == 40 else 2)
    assert "0.00 → 0.99" in out.getvalue()
    assert "0.00 → 19900.00" in out.getvalue()
    assert {"▁", "█"} <= set(lines[0])
    assert len(lines[0]) > 0.6 * width  # the bars use the room there is


def test_a_log_file_has_no_escape_codes_under_force_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    tracker = ConsoleTracker(3)
    drive(Trackers([tracker]))
    tracker.alert("reward hacking", "index 0.60")
    tracker.finish("done")
    shown = capsys.readouterr().out
    assert "reward hacking: index 0.60" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "variable", ["WANDB_BASE_URL=wandb.corp", "WANDB_CONSOLE=loud", "WANDB_INIT_TIMEOUT=soon", "WANDB_TAGS=,,"]
)
def test_a_variable_that_wandb_refuses_is_named_and_stops_nothing(
    variable: str, tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()  # it reads its settings once a process
    monkeypatch.setenv(*variable.split("=", 1))
    said: list[str] = []
    tracker = wandb_tracker(tmp_path, said)
    tracker.log(1, train_metrics(1))
    tracker.finish("done")
    [line] = said
    assert line.startswith(f"W&B is off ({variable}: ")
    assert line.endswith("; metrics.jsonl holds everything")
