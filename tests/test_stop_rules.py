"""stop.when: what a rule may say, which metrics it may name, when it stops a run, and how such a run goes on."""

import json
from pathlib import Path

import pytest
from helpers.runs import numbers, train

from rlhf_cli.config.arguments import parted
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.stop_schema import TRAIN, Rule
from rlhf_cli.runs.checkpoint import all_of
from rlhf_cli.runs.status import read_status
from rlhf_cli.runs.stop_rules import StopRules


@pytest.mark.parametrize(
    ("text", "rule", "met", "unmet"),
    [
        ("val/kl > 20", Rule("val/kl", ">", 20.0), 20.5, 20.0),
        ("val/score/positive>=0.5", Rule("val/score/positive", ">=", 0.5), 0.5, 0.4),
        (" train/lr < 1e-7 ", Rule("train/lr", "<", 1e-7), 0.0, 1e-7),
        ("val/reward <= -.5", Rule("val/reward", "<=", -0.5), -0.5, 0.0),
    ],
)
def test_a_rule_is_read(text: str, rule: Rule, met: float, unmet: float) -> None:
    assert Rule.of(text) == rule
    assert rule.met(met)
    assert not rule.met(unmet)
    assert not rule.met(float("nan"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("stop.when='val/kl'", "a metric, one of"),
        ("stop.when='val/kl > 20 or exit()'", "a metric, one of"),
        ("stop.when='val/kl == 20'", "a metric, one of"),
        ("stop.when='val/kl > nan'", "a metric, one of"),
        ("stop.when='val/klo > 2'", "Did you mean val/kl?"),
        ("stop.when='train/clipfrak > 2'", "Did you mean train/clipfrac?"),
        ("stop.when='words > 2'", "there is no metric words"),
        ("stop.patience=0", "greater than or equal to 1"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_config(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        plan("train", ["scale=mini", typed], multirun=False, config_dir=None)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("stop.when=val/kl > 20", "stop.when=['val/kl > 20']"),
        ("stop.when=[val/kl > 20, val/score<1]", "stop.when=['val/kl > 20','val/score<1']"),
        ("stop.when='val/kl > 20'", "stop.when='val/kl > 20'"),
        ("stop.when=[]", "stop.when=[]"),
    ],
)
def test_rules_are_typed_without_quotes_of_their_own(word: str, key: str) -> None:
    assert parted("train", [word]) == ([key], [])
    job = plan("train", ["scale=mini", key, "val.metrics=[m:mine]"], multirun=False, config_dir=None).jobs[0]
    assert [rule.metric for rule in job.stop.rules] == [part for part in ("val/kl", "val/score") if part in word]


def test_every_training_metric_that_the_code_names_is_known() -> None:
    import re

    rooms = Path(__file__).parents[1] / "rlhf_cli"
    code = "\n".join(file.read_text() for room in ("training", "rl") for file in (rooms / room).rglob("*.py"))
    assert set(re.findall(r'"train/([a-z_0-9]+)"', code)) <= set(TRAIN)


def test_only_validations_in_a_row_count_and_not_the_first() -> None:
    rules = StopRules((Rule("val/kl", ">", 2.0),), patience=2)
    for step, kl in enumerate([9.0, 3.0, 1.0, 3.0]):
        rules.look(step, {"val/kl": kl})
    assert rules.reason is None
    rules.look(4, {"val/kl": 4.0})
    assert rules.reason == "val/kl is 4, > 2 at 2 validations in a row"


def test_a_metric_that_this_run_lacks_is_refused_at_step_0() -> None:
    with pytest.raises(UserError, match="no metric val/gold_score; it has val/kl"):
        StopRules((Rule("val/gold_score", ">", 2.0),), patience=1).look(0, {"val/kl": 1.0})


def test_counts_go_on_from_the_record(tmp_path: Path) -> None:
    rows = [{"step": 0, "val/score": 1}, {"step": 1, "train/kl": 5}, {"step": 2, "val/score": 1, "train/kl": 5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = StopRules.of(tmp_path, [Rule("train/kl", ">", 2.0)], patience=2)
    assert (rules.counts, rules.reason) == ({Rule("train/kl", ">", 2.0): 1}, None)
    rules.look(4, {"train/kl": 3.0})
    assert rules.reason


def test_a_run_stops_says_why_and_goes_on_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    rule = ["stop.when=val/response_length > 0", "val.every=1", "checkpoint.every=0", "algo=grpo"]
    assert train(run, *rule, "steps=2") == 0
    reason = read_status(run)["reason"]
    assert "stopped by stop.when at step 1: val/response_length is" in capsys.readouterr().out
    assert (read_status(run)["state"], read_status(run)["step"]) == ("done", 1)
    assert reason.endswith("> 0")
    assert [folder.name for folder in all_of(run)] == ["step_000001"]
    before = numbers(run)
    assert train(run, f"resume={run}", *rule, "steps=2") == 0
    assert numbers(run) == before
    assert (read_status(run)["step"], read_status(run)["reason"]) == (1, reason)
