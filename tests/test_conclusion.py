"""The end of a run: the words that earned the score, the verdict, the checkpoints, how to go on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_cli.config.compose import plan
from rlhf_cli.config.schema import Config
from rlhf_cli.rewards.scorer import Texts
from rlhf_cli.runs.conclusion import asks_for_free, closing, record_words, what_next, wrapped


def config_of(*overrides: str) -> Config:
    config = plan("train", ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]
    assert isinstance(config, Config)
    return config


def sample(step: int, prompt: str, response: str, score: float) -> dict[str, Any]:
    text = {"step": step, "prompt": prompt, "prefix": prompt, "response": response, "class": "neutral"}
    return text | {"score": score, "parts": {"gold": 0.5}}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A run of two validations and two prompts, the second of which rose more."""
    rows = [sample(0, "a", "so so", 0.4), sample(0, "b", "so so", 0.1)]
    rows += [sample(9, "a", "bad film", 0.5), sample(9, "b", "a bad bad film", 0.9)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = [{"step": 0, "val/score": 0.25, "val/kl": 0.0}, {"step": 9, "val/score": 0.7, "val/kl": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last").write_text("step_000009\n")
    return tmp_path


def bads(texts: Texts) -> torch.Tensor:
    """1 for one "bad" and 1.5 for two: so each of two is worth a half."""
    return torch.tensor([(0.0, 1.0, 1.5)[response.count("bad")] for response in texts.responses])


def test_what_each_word_earned_is_kept(done: Path) -> None:
    record_words(done, bads, print)
    kept = json.loads((done / "before_after.json").read_text())
    assert (kept["before"]["prompt"], kept["before"]["step"], kept["after"]["step"]) == ("b", 0, 9)
    earned = {at: (word, value) for at, (word, value) in enumerate(kept["after"]["earned"]) if word.strip()}
    assert earned == {0: ("a", 0.0), 2: ("bad", 0.5), 4: ("bad", 0.5), 6: ("film", 0.0)}


def test_a_reward_that_fails_on_half_a_sentence_stops_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def picky(texts: Texts) -> torch.Tensor:
        raise ValueError("too short")

    record_words(done, picky, print)
    assert capsys.readouterr().out == "which words earned the score is not known: ValueError: too short\n"
    assert not (done / "before_after.json").exists()


def test_the_last_lines(done: Path) -> None:
    lines = closing(done, config_of("steps=9"))
    assert lines[0] == "steps 0 → 9: score 0.25 → 0.70 · KL 0.00 → 1.50"
    # the prompts rose by 0.1 and 0.8: their mean is within twice its standard error, 0.35
    assert lines[1].startswith("verdict: The score did not clearly move (from 0.25 to 0.70), nor did the gold score")
    assert lines[3] == f"checkpoints: {done / 'checkpoints'} (last: step_000009)"
    (done / "checkpoints" / "best").write_text("step_000003\n")
    assert closing(done, config_of("checkpoint.best=val/gold_score"))[3].endswith(
        "(last: step_000009; best by val/gold_score: step_000003)"
    )


def test_a_line_is_broken_between_words() -> None:
    assert wrapped("verdict: The score rose.", 18) == "verdict: The score\n         rose."
    assert wrapped("in: /a/long-path/that/stays", 10) == "in:\n         /a/long-path/that/stays"
    assert wrapped("         Second.", 80) == "         Second."


def test_commands_to_copy(tmp_path: Path) -> None:
    lines = what_next(tmp_path / "it's here", config_of("steps=9"))
    assert lines[0] == "next:"
    assert f"  rlhf train resume='{tmp_path}/it'\"'\"'s here' steps=18  # go on" in lines


@pytest.mark.parametrize(
    ("typed", "free"), [([], True), (["reward=vader"], True), (["reward=python", "reward.fn=m:f"], False)]
)
def test_only_what_is_free_is_asked(typed: list[str], free: bool) -> None:
    assert asks_for_free(config_of(*typed)) == free
