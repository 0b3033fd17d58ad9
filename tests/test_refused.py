"""What Hydra answers in its own words, or takes without a word: one message, before a model is loaded."""

from pathlib import Path

import pytest

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.runs.best import check_known
from rlhf_cli.streams import processes_started


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "critic=null"], "type critic=none"),
        (["train", "gold=null"], "type gold=none"),
        (["train", "reward="], "leave reward= out"),
        (["train", "tracking=null"], "type tracking=none"),
        (["train", "resume="], "resume= names no folder"),
        (["eval", "checkpoint="], "checkpoint= names no folder"),
        (["train", "from=''"], "from= names no folder"),
        (["sweep", "resume="], "resume= names no folder"),
        (["train", "--config-path", "/nowhere"], "--config-dir <folder>"),
        (["train", "--config-name", "mine"], "--config-dir <folder>"),
        (["train", "tracking.project=2024"], "tracking.project=\"'2024'\""),
        (["train", "reward=python", "reward.fn=json:loads_"], "module 'json' has no attribute 'loads_'"),
        (["train", "reward=python", "reward.fn=json:dumps"], "called with 2 arguments"),
        (["train", "algo.loss=json:dumps"], "called with 4 arguments"),
        (["train", "--experiment=smoke"], "without dashes"),
        (["train", "reward=[vader,form]"], "reward=mix"),
    ],
)
def test_one_message_before_anything_runs(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dispatch([*argv, *([] if argv[0] == "sweep" else ["scale=mini"])]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("rlhf: ") == 1
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("status.json"))  # no run began


@pytest.mark.parametrize(("told", "count"), [("abc", 1), ("", 1), ("-2", 1), ("2", 2)])
def test_a_world_size_that_is_no_number_is_one_process(told: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", told)
    assert processes_started() == count


def test_an_objective_that_no_validation_has_is_said_at_the_first() -> None:
    metrics = {"step": 0, "val/score": 0.4, "val/kl": 0.0}
    check_known("objective", "val/score", metrics)
    check_known("objective", "train/reward", metrics)  # a step's: not known yet
    check_known("objective", "val/scoer", {"step": 0})  # no validation
    with pytest.raises(UserError, match=r"Did you mean objective=val/score\? It has val/score, val/kl"):
        check_known("objective", "val/scoer", metrics)
