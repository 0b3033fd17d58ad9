"""Several judges that are not trained on: what was typed, what is logged, who reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import train

from rlhf_cli.build.rewards import same_as
from rlhf_cli.cli import dispatch
from rlhf_cli.config.arguments import one_by_one
from rlhf_cli.config.reward_schema import Reward, Source, TextJudge
from rlhf_cli.evaluation.audit import Gains, confirmed
from rlhf_cli.evaluation.validation_metrics import gold_of, gold_parts
from rlhf_cli.report.runs import load
from rlhf_cli.rewards.scorer import Texts
from rlhf_cli.runs.hacking_watch import HackingWatch
from rlhf_cli.sweeps.table import show
from rlhf_cli.tracking.jsonl import read_jsonl

TWO = "gold=[vader,roberta_large]"
PARTS = {"gold", "gold/vader", "gold/roberta_large"}


@pytest.mark.parametrize(
    ("typed", "hydras"),
    [
        ("gold=vader", ["gold=vader"]),
        ("gold=vader,roberta_base", ["gold=vader,roberta_base"]),  # a sweep
        ("gold=[vader]", ["gold=vader"]),
        ("gold=[vader, 'roberta_base']", ["gold=vader", "+gold@gold.others.roberta_base=roberta_base"]),
        ("gold=[a,my/b]", ["gold=a", "+gold@gold.others.b=my/b"]),
        ("reward=[a,b]", ["reward=[a,b]"]),
    ],
)
def test_a_list_as_hydra_wants_it(typed: str, hydras: list[str]) -> None:
    assert one_by_one(typed) == hydras


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("gold=[vader,vader]", "the judge vader is there twice"),
        ("gold=[]", "or gold=none"),
        ("gold=[none,vader]", "none is no judge"),
        ("gold=[vader],[roberta_base]", "the same for all jobs"),
        ("gold=[vader,robrta_base]", "Did you mean gold=roberta_base?"),
        ("reward=[vader,form]", "several rewards are the sources of one: reward=mix"),
        ("algo=[ppo,grpo]", "one option of the group is wanted"),
        ("+gold@gold.others.again=vader", "the judge again is there twice"),
    ],
)
def test_what_is_refused(typed: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", typed) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_path_of_another_judge_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", TWO, "gold.others.roberta_large.path=/nowhere/at/all") == 2
    assert "gold.others.roberta_large.path=/nowhere/at/all: no such folder" in capsys.readouterr().err


def test_a_list_in_a_file_says_how_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    two = "# @package _global_\ndefaults:\n  - override /gold: [vader, roberta_base]\n"
    (tmp_path / "experiment" / "two.yaml").write_text(two)
    assert train(tmp_path / "run", "--config-dir", str(tmp_path), "experiment=two") == 2
    assert "/gold@gold.others.roberta_base: roberta_base" in capsys.readouterr().err


def test_the_parts_of_one_judge_are_as_before_and_of_several_by_name() -> None:
    a, b = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])
    assert gold_parts({}) == {}
    assert gold_parts({"vader": a}) == {"gold": a}
    assert gold_parts({"vader": a, "other": b}) == {"gold": a, "gold/vader": a, "gold/other": b}


def test_rows_of_any_release_give_the_scores_by_judge() -> None:
    def rows(*parts: dict[str, float]) -> list[dict[str, Any]]:
        return [{"parts": each} for each in parts]

    assert gold_of([]) == {}
    assert gold_of(rows({"ngram": 1.0})) == {}
    assert gold_of(rows({"gold": 0.1}, {"gold": 0.2})) == {"gold": [0.1, 0.2]}
    assert gold_of(rows({"gold": 0.1}, {"ngram": 0.2})) == {}
    two = rows({"gold": 0.1, "gold/x": 0.1, "gold/y": 0.7}, {"gold": 0.2, "gold/x": 0.2, "gold/y": 0.8})
    assert gold_of(two) == {"x": [0.1, 0.2], "y": [0.7, 0.8]}


def test_which_part_of_the_reward_a_judge_is() -> None:
    vader, large = TextJudge(name="vader"), TextJudge(name="roberta_large", hub="x/y")
    assert same_as(vader, Reward(name="vader")) == "the reward itself"
    assert same_as(large, Reward(name="roberta_large", path="/mine")) == ""
    mix = Reward(name="mix", sources={"words": Source(name="vader")})
    assert same_as(vader, mix) == "a part of the reward, vader"
    assert same_as(TextJudge(name="python", fn="a:b"), Reward(name="python", fn="a:b")) == ""


def test_a_gain_that_any_judge_confirms_is_earned() -> None:
    texts = Texts([""] * 2, [""] * 2, ["a", "b b"], [[]] * 2)
    first = Gains.of(lambda t: torch.tensor([float(r.count("a")) for r in t.responses]), texts)
    second = Gains.of(lambda t: torch.tensor([float(r.count("b")) for r in t.responses]), texts)
    gains = confirmed([first, second])(texts, [0, 1], ["a b", "b"])
    assert gains == [1.0, 0.0]  # one b is half of what b differs by, two standard deviations; losing a b gains nothing


def test_every_command_shows_every_judge(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(run, TWO, "reward=roberta_large", "steps=2") == 0
    said = capsys.readouterr().out
    assert "gold=roberta_large is the reward itself" in said
    assert "gold vader 0." in said
    logged = [row for row in read_jsonl(run / "metrics.jsonl") if "val/score" in row]
    samples = read_jsonl(run / "samples.jsonl")
    for row in logged:
        at = [sample for sample in samples if sample["step"] == row["step"]]
        assert all(set(sample["parts"]) == PARTS for sample in at)
        for name in PARTS:
            metric = name.replace("gold", "val/gold_score", 1)
            assert row[metric] == pytest.approx(sum(s["parts"][name] for s in at) / len(at), abs=1e-6)
        assert row["val/gold_score"] == row["val/gold_score/vader"]
        assert row["val/score"] == pytest.approx(row["val/gold_score/roberta_large"])
        assert HackingWatch(0.5).judged(row, at).gold == [sample["parts"]["gold/vader"] for sample in at]
    assert load(run).last("val/gold_score/vader") == logged[-1]["val/gold_score"]

    assert train(run, f"resume={run}", TWO, "steps=2") == 0  # the same words again are no change
    assert dispatch(["compare", str(run), f"hydra.run.dir={tmp_path / 'compare'}"]) == 0
    rates = json.loads((tmp_path / "compare" / "compare.json").read_text())["win_rate"]
    assert set(rates) == PARTS | {"reward"}
    assert rates["gold"] == rates["gold/vader"]
    assert rates["reward"] == pytest.approx(rates["gold/roberta_large"])

    out = tmp_path / "out"
    assert dispatch(["frontier", str(run), f"out={out}", "frontier.samples=4", "frontier.n=[4]"]) == 0
    told = json.loads((out / "frontier.json").read_text())
    for row in (*told["best_of_n"], *told["optimal"], *told["checkpoints"]):
        assert row["gold"] == row["gold/vader"]
        assert row["gold/roberta_large"] == pytest.approx(row["reward"], abs=1e-6)
    assert "gold/roberta_large" in capsys.readouterr().out

    assert dispatch(["report", str(run), f"out={tmp_path / 'report'}"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "gold score, roberta_large" in page


def test_a_sweeps_files_have_every_judge_and_a_narrow_terminal_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scores = {"val/score": 0.5, "val/gold_score": 0.25, "val/gold_score/vader": 0.25, "val/gold_score/other": 0.75}
    jobs = [{"job": n, "overrides": [f"seed={n}"], "config": {}} for n in (0, 1)]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs, "shared": {}}))
    for n in (0, 1):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "metrics.jsonl").write_text(json.dumps({"step": 0, **scores}) + "\n")
    show(tmp_path)
    printed = capsys.readouterr().out
    assert "gold" in printed
    assert "0.750" not in printed
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["val/gold_score/other"] for row in table["jobs"]] == [0.75, 0.75]
    assert "| other |" in (tmp_path / "table.md").read_text()
