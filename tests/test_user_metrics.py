"""val.metrics: what a user's functions may give, what is refused when, and where the numbers go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import numbers, train

from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import RunFailed, UserError
from rlhf_cli.config.trust import refuse_code
from rlhf_cli.evaluation.user_metrics import measured, user_metrics
from rlhf_cli.report.answers import own_metrics
from rlhf_cli.runs.status import read_status

OWN = """
def words(prompts, responses):
    return [len(r.split()) for r in responses]

def parts(prompts, responses):
    return {"share": 0.25, "each": [1.0] * len(prompts)}

def breaks(prompts, responses):
    raise KeyError("lost")

def one_argument(prompts):
    return 1.0

def score(prompts, responses):
    return 1.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_metrics_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (0.5, {"val/f": 0.5}),
        ([1, 3], {"val/f": 2.0}),
        (torch.tensor([1.0, 2.0]), {"val/f": 1.5}),
        (torch.tensor(2.0), {"val/f": 2.0}),
        (True, {"val/f": 1.0}),
        ({"a": 1.0, "b": [0, 1]}, {"val/f/a": 1.0, "val/f/b": 0.5}),
        ({}, {}),
    ],
)
def test_numbers_lists_and_dicts_are_taken(given: Any, wanted: dict[str, float]) -> None:
    assert measured({"m:f": lambda prompts, responses: given}, ["p", "q"], ["r", "s"]) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], "gave 1 numbers for 2 responses"),
        ("12", "a finite number is wanted"),
        (None, "wanted is a number"),
        ({1.0, 2.0}, "wanted is a number"),
        ({"a": "x"}, "wanted is a number"),
        (float("nan"), "a finite number is wanted"),
        ([1.0, float("inf")], "a finite number is wanted"),
    ],
)
def test_what_is_no_number_fails_with_the_reason(given: Any, said: str) -> None:
    with pytest.raises(RunFailed, match=f"m:f gave .*{said.removeprefix('gave ')}"):
        measured({"m:f": lambda prompts, responses: given}, ["p", "q"], ["r", "s"])


def test_a_function_may_change_what_it_is_given() -> None:
    prompts, responses = ["p"], ["r"]

    def f(prompts: list[str], responses: list[str]) -> float:
        responses.clear()
        return 1.0

    assert measured({"m:f": f}, prompts, responses) == {"val/f": 1.0}
    assert responses == ["r"]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("[words]", "module:function is wanted"),
        ("[m:score]", "val/score is rlhf's own"),
        ("[a:f,b:f]", "two functions of one name"),
    ],
)
def test_names_are_checked_with_the_config(metrics: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan("train", ["scale=mini", f"val.metrics={metrics}"], multirun=False, config_dir=None)


@pytest.mark.parametrize(("name", "said"), [("gone", "no attribute 'gone'"), ("one_argument", "called with 2")])
def test_functions_are_checked_before_a_model_is_loaded(own: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        user_metrics([f"{own}/own_metrics_of_mine.py:{name}"])


def test_somebody_elses_metrics_are_not_run() -> None:
    theirs = {"val": {"metrics": ["m:f"]}}
    with pytest.raises(UserError, match=r"or without them: val.metrics=\[\]"):
        refuse_code(Path("theirs"), theirs, set(), trusted=False)
    refuse_code(Path("theirs"), theirs, {"val.metrics"}, trusted=False)
    refuse_code(Path("theirs"), theirs, set(), trusted=True)


def test_a_run_logs_them_and_keeps_its_best_by_one(own: Path) -> None:
    run = own / "run"
    mine = "val.metrics=[own_metrics_of_mine:words,own_metrics_of_mine:parts]"
    assert (
        train(run, mine, "checkpoint.best=val/words", "steps=1", "checkpoint.every=0", "objective=val/parts/each") == 0
    )
    rows = numbers(run)
    assert [(row["step"], row["val/parts/share"], row["val/parts/each"]) for row in rows] == [
        (0, 0.25, 1),
        (1, 0.25, 1),
    ]
    assert all(row["val/words"] > 0 for row in rows)
    assert (run / "checkpoints" / "best").read_text() == "step_000001\n"
    assert str(own / "own_metrics_of_mine.py") in (run / "config.yaml").read_text()


def test_one_that_raises_fails_the_run_at_its_first_validation(own: Path) -> None:
    run = own / "run"
    assert train(run, "val.metrics=[own_metrics_of_mine:breaks]", "steps=1") == 1
    status = read_status(run)
    assert (status["state"], status["step"]) == ("failed", 0)
    assert "raised KeyError: 'lost'" in status["error"]


def test_the_report_finds_them() -> None:
    rows = [{"val/score": 1.0, "val/words": 2.0, "val/parts/a": 1.0, "val/wordsmith": 1.0}]
    run = SimpleNamespace(config={"val.metrics": ["m:words", "m:parts"]}, metrics=rows)
    old = SimpleNamespace(config={}, metrics=rows)
    assert own_metrics([SimpleNamespace(runs=[run, old])]) == ["val/words", "val/parts/a"]
    assert own_metrics([SimpleNamespace(runs=[old])]) == []
