"""rlhf compare: win rates, moods of words, and the command."""

import json
from pathlib import Path

import pytest
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.evaluation.win_rate import moods, win_rate


def test_win_rate_by_hand() -> None:
    rate, low, high = win_rate([0.0, 0.5, 1.0, 0.2], [1.0, 0.5, 0.0, 0.9])
    assert rate == (1 + 0.5 + 0 + 1) / 4
    assert 0 <= low < rate < high <= 1
    assert win_rate([0.0] * 9, [1.0] * 9) == (1, 1, 1)
    _, narrow, _ = win_rate([0.0, 1.0] * 200, [1.0, 0.0] * 200)
    assert 0.4 < narrow < 0.5


def test_moods_keep_the_text() -> None:
    lexicon = {"dull": -1.7, "lovely": 2.8}
    pieces = moods("A lovely start, a Dull end.", lexicon)
    assert "".join(piece for piece, _ in pieces) == "A lovely start, a Dull end."
    assert [piece for piece, mood in pieces if mood == "positive"] == ["lovely"]
    assert [piece for piece, mood in pieces if mood == "negative"] == ["Dull"]


def test_the_command(cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert dispatch(["train", *SMALL, "optim.actor_lr=0.01", f"hydra.run.dir={run}"]) == 0
    assert dispatch(["compare", str(run), str(run), f"hydra.run.dir={tmp_path / 'same'}"]) == 0
    same = json.loads((tmp_path / "same" / "compare.json").read_text())
    assert same["win_rate"]["reward"]["rate"] == 0.5  # the same policy, the same random numbers: all ties
    assert same["typed"][0] == same["typed"][1]
    assert dispatch(["compare", str(run), f"hydra.run.dir={tmp_path / 'before'}"]) == 0
    before = json.loads((tmp_path / "before" / "compare.json").read_text())
    assert before["b"] == "the untrained actor"
    assert before["test"][0] != before["test"][1]
    assert "</html>" in (tmp_path / "before" / "compare.html").read_text()
    assert "B wins" in capsys.readouterr().out
    assert dispatch(["compare", str(run), "/nowhere", f"hydra.run.dir={tmp_path / 'c'}"]) == 2
