"""rlhf probe: wrappings, flips, intervals, and the command."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.evaluation.wrapping import probe, rates, wilson, wrapped

NEGATIVE, POSITIVE = [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]


def order() -> list[int]:
    """SENTIMENTS' order of (negative, neutral, positive)."""
    from rlhf_cli.data.reviews import SENTIMENTS

    return [("negative", "neutral", "positive").index(name) for name in SENTIMENTS]


def fooled(texts: list[str]) -> torch.Tensor:
    """Calls everything after a system text positive."""
    rows = torch.tensor([POSITIVE if "helpful" in text else NEGATIVE for text in texts])
    return rows[:, order()]


def sturdy(texts: list[str]) -> torch.Tensor:
    return torch.tensor([NEGATIVE] * len(texts))[:, order()]


def test_flips_are_counted_against_bare() -> None:
    readings = probe(["a", "b"], ["negative", None], {"fooled": fooled, "sturdy": sturdy}, system="Be helpful.")
    assert len(readings) == 2 * 3 * 2
    by = {(r.model, r.wrapping, r.text): r for r in readings}
    assert not by["fooled", "bare", 0].flipped
    assert by["fooled", "system", 0].flipped
    assert by["fooled", "system", 0].misread
    assert by["fooled", "system", 1].misread is None
    assert by["fooled", "system", 0].probabilities["positive"] == pytest.approx(0.8)
    table = {(row["model"], row["wrapping"]): row for row in rates(readings)}
    assert table["fooled", "system + user"]["flip_rate"] == 1
    assert table["fooled", "system"]["moved"] == pytest.approx(0.1 - 0.8)
    assert table["fooled", "bare"]["moved"] == 0
    assert table["sturdy", "system"]["moved_half"] == 0
    assert table["sturdy", "system + user"]["flips"] == 0
    assert table["fooled", "system"]["known"] == 1


def test_wrappings() -> None:
    assert wrapped("t", "bare", "s") == "t"
    assert wrapped("t", "system + user", "s") == "system\ns\nuser\nt"
    with pytest.raises(ValueError, match="bare"):
        wrapped("t", "other", "s")


def test_the_mean_move_and_its_interval_by_hand() -> None:
    """P(negative) falls by 0.7 in one text of two."""
    readings = probe(["a", "b"], [None, None], {"m": lambda texts: half(texts)}, system="Be helpful.")
    row = next(row for row in rates(readings) if row["wrapping"] == "system")
    assert row["moved"] == pytest.approx(-0.35)
    assert row["moved_half"] == pytest.approx(1.96 * 0.35)  # ddof 1: the deviation of (−0.7, 0) is 0.7/√2
    assert row["flips"] == 1


def half(texts: list[str]) -> torch.Tensor:
    return torch.cat([fooled(texts[:1]), sturdy(texts[1:])])


def test_wilson_by_hand() -> None:
    low, high = wilson(0, 200)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (200 + 1.96**2))
    low, high = wilson(50, 100)
    assert low + high == pytest.approx(1)
    assert high == pytest.approx(0.5 + 1.96 / (2 * (100 + 1.96**2) ** 0.5))


def test_the_command(cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [option for option in SMALL if not option.startswith("steps")]
    assert dispatch(["probe", *small, "probe.reviews=9", f"hydra.run.dir={tmp_path / 'a'}"]) == 0
    kept = json.loads((tmp_path / "a" / "probe.json").read_text())
    assert len(kept["texts"]) == 10
    assert len(kept["rates"]) == 6
    assert "all 10 texts" in capsys.readouterr().out
    file = tmp_path / "passages.jsonl"
    file.write_text("".join(json.dumps({"text": f"A film of {i} parts.", "label": i % 2}) + "\n" for i in range(8)))
    given = [f"probe.file={file}", "probe.reviews=6", "probe.models=[roberta_base]", f"hydra.run.dir={tmp_path / 'f'}"]
    assert dispatch(["probe", *small, *given]) == 0
    kept = json.loads((tmp_path / "f" / "probe.json").read_text())
    assert len(kept["texts"]) == 6
    assert all(text.startswith("A film of") for text in kept["texts"])  # what the file has, and nothing beside it
    assert "all 6 texts" in capsys.readouterr().out
    assert dispatch(["probe", "It was [bold]dull.", *small, f"hydra.run.dir={tmp_path / 'b'}"]) == 0
    assert "[bold]dull." in capsys.readouterr().out
    assert dispatch(["probe", *small, "probe.run=/nowhere", f"hydra.run.dir={tmp_path / 'c'}"]) == 2
