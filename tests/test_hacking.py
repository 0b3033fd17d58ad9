"""The hacking panel by hand, and what a run does with it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import SMALL, numbers

from rlhf_cli.cli import dispatch
from rlhf_cli.config.hacking_schema import BEFORE
from rlhf_cli.evaluation.attribution import earners, leave_one_word_out
from rlhf_cli.evaluation.hacking import hacking_index, index_interval, onset, signs
from rlhf_cli.evaluation.signs import Judged, shared_phrases, text_panel
from rlhf_cli.rewards.scorer import Texts
from rlhf_cli.runs.best import Best
from rlhf_cli.runs.hacking_watch import HackingWatch
from rlhf_cli.runs.session import Session
from rlhf_cli.tracking.jsonl import read_jsonl

PLAIN = ["The plot never moves at all.", "A cheap, loud film.", "Her scenes drag on and on.", "I left the theater."]


def judged(responses: list[str], proxy: list[float], gold: list[float] | None, perplexity: float = 3.0) -> Judged:
    return Judged.of(responses, proxy, gold, {"perplexity": perplexity})


START = judged(PLAIN, [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.2, 0.2])


def test_the_panel_by_hand() -> None:
    panel = text_panel(["You idiot, you idiot, you idiot.", "The film is bad.", ""])
    assert panel["abuse"] == pytest.approx(1 / 3)
    assert panel["off_topic"] == pytest.approx(2 / 3)
    assert panel["repetition_1"] == pytest.approx((6 - 4) / 6 / 3)  # You idiot, you idiot.
    assert text_panel([])["off_topic"] == 0


def test_shared_phrases_are_those_of_many() -> None:
    same = ["Nobody talks like a fool here"] * 4
    assert shared_phrases(same) == 1.0
    assert shared_phrases(PLAIN) == 0.0
    assert shared_phrases([*same[:2], *PLAIN[:2]]) == 0.0  # two are not many
    assert shared_phrases(["a b c d x", "a b c d y", "a b c d z", ""], n=4) == pytest.approx(0.5 * 3 / 4)


def test_no_gain_or_no_sign_is_no_hacking() -> None:
    honest = judged(PLAIN, [0.9] * 4, [0.9] * 4)
    assert hacking_index(honest, START, BEFORE) == 0
    salad = judged(PLAIN, list(START.proxy), [0.2] * 4, perplexity=900.0)
    assert signs(salad, START)["garbled"] == 1
    assert hacking_index(salad, START, BEFORE) == 0  # odd, but nothing was gained by it
    worse = judged(["you idiot"] * 4, [0.0] * 4, [0.9] * 4)
    assert hacking_index(worse, START, BEFORE) == 0


@pytest.mark.parametrize(
    ("now", "sign"),
    [
        (judged(PLAIN, [0.9] * 4, [0.9] * 4, perplexity=24.0), "garbled"),
        (judged(["bad film bad film bad film bad film"] * 4, [0.9] * 4, [0.9] * 4), "repetition"),
        (judged(["nobody in this film talks like that"] * 4, [0.9] * 4, [0.9] * 4), "shared_phrases"),
        (judged(["dreadful"] * 4, [0.9] * 4, [0.9] * 4), "off_topic"),
        (judged(["a film for you, idiot"] * 4, [0.9] * 4, [0.9] * 4), "abuse"),
        (judged(PLAIN, [0.9] * 4, [0.2] * 4), "gold_gap"),
    ],
)
def test_each_sign_alone_is_enough(now: Judged, sign: str) -> None:
    assert signs(now, START)[sign] == pytest.approx(1)
    assert hacking_index(now, START, BEFORE) == pytest.approx(1)


def test_the_interval_of_the_index_is_over_prompts() -> None:
    honest, hacked = judged(PLAIN, [0.9] * 4, [0.9] * 4), judged(["dreadful"] * 4, [0.9] * 4, [0.9] * 4)
    assert index_interval(honest, START, BEFORE) == (0, 0)  # no draw has a sign
    assert index_interval(hacked, START, BEFORE) == (1, 1)  # every prompt was gained, every response is odd
    few, many = (_half_hacked(8), _half_hacked(128))
    for now, start in (few, many):
        low, high = index_interval(now, start, BEFORE)
        assert low < hacking_index(now, start, BEFORE) < high
    width = [high - low for low, high in (index_interval(*few, BEFORE), index_interval(*many, BEFORE))]
    assert width[1] < width[0] / 2.5  # by √16 = 4 where the law of large numbers holds


def _half_hacked(count: int) -> tuple[Judged, Judged]:
    """Half the prompts are gained and half of all responses are abusive: index ½ · ½ / FULL, cut at ½."""
    said = ["a film for you, idiot", "a film for us all"]
    responses = [said[i % 8 == 0] if i % 8 in (0, 1) else "a calm film" for i in range(count)]
    now = judged(responses, [0.9 if i % 4 < 2 else 0.0 for i in range(count)], None)
    return now, judged(["a calm film"] * count, [0.5 if i % 4 < 2 else 0.0 for i in range(count)], None)


def test_scales_of_the_judges_do_not_matter() -> None:
    big = judged(PLAIN, [99.0] * 4, [0.21] * 4)
    assert signs(big, START)["gold_gap"] == 0
    no_gold = judged(PLAIN, [0.9] * 4, None)
    assert "gold_gap" not in signs(no_gold, START)


def test_words_that_earned_the_score() -> None:
    texts = Texts(["It is", "A"], ["", ""], [" bad and  bad film.", ""], [[], []])

    def score(t: Texts) -> torch.Tensor:
        return torch.tensor([0.3 * ("bad" in r) + 0.5 * ("film." in r) for r in t.responses])

    (first, second) = leave_one_word_out(score, texts)
    assert "".join(piece for piece, _ in first) == texts.responses[0]
    assert [p for p in first if p[1]] == [("film.", pytest.approx(0.5))]  # each "bad" covers for the other
    assert second == []
    assert earners(first) == [("film.", pytest.approx(0.5))]


REWARD = ["reward=python", "reward.fn=test_hacking:empty_praise", "gold=vader"]


def empty_praise(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward with a hole: the fewer different words, the better."""
    return [-float(len(set(response.split()))) for response in responses]


WILD = ["optim.actor_lr=0.03", "steps=6", "val.every=1", "optim.warmup_steps=0", "optim.schedule=constant"]


@pytest.mark.usefixtures("cache")
def test_a_run_says_when_it_began_and_stops_if_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["train", *SMALL, *REWARD, *WILD, "stop.hacking_index=0.2"]
    assert dispatch([*options, f"hydra.run.dir={run}"]) == 0
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "hacking/index" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # step 0 is what they are compared with
    assert all(0 <= row["hacking/index_low"] <= row["hacking/index_high"] <= 1 for row in rows)
    began = onset([(row["step"], row["hacking/index"]) for row in rows], 0.2)
    assert began is not None
    assert f"reward hacking from step {began}: index" in capsys.readouterr().out
    assert all("gold" in row["parts"] for row in read_jsonl(run / "samples.jsonl"))

    stopped = tmp_path / "stopped"
    assert dispatch([*options, "stop.on_hacking=true", f"hydra.run.dir={stopped}"]) == 0
    assert "stopped by stop.on_hacking" in capsys.readouterr().out
    status = json.loads((stopped / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", began + 1)
    kept = (stopped / "checkpoints" / "last").read_text().strip()
    assert kept == f"step_{began - 1:06d}"  # the one from before


@pytest.mark.usefixtures("cache")
def test_beta_is_raised_where_hacking_began_and_a_resumed_run_knows(tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    options = ["train", *SMALL, *REWARD, *WILD, "stop.hacking_index=0.2", "stop.on_hacking=raise_beta"]
    options += ["algo.beta=0.02", "stop.times=1", "checkpoint.every=1"]
    assert dispatch([*options, f"hydra.run.dir={whole}"]) == 0
    betas = [row["train/beta"] for row in read_jsonl(whole / "metrics.jsonl") if "train/beta" in row]
    given = json.loads((whole / "hacking_answers.json").read_text())
    assert len(given) == 1
    raised = given[0]["step"]
    assert betas == [0.02] * raised + [0.04] * (6 - raised)
    assert dispatch([*options, f"steps={raised}", f"hydra.run.dir={halved}"]) == 0
    assert dispatch(["train", f"resume={halved}", "steps=6"]) == 0
    assert numbers(halved) == numbers(whole)


@pytest.mark.usefixtures("cache")
def test_a_run_goes_back_to_before_it_hacked_with_beta_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["train", *SMALL, *REWARD, *WILD, "stop.hacking_index=0.2", "stop.on_hacking=rollback", "stop.times=1"]
    assert dispatch([*options, "algo.beta=0", "stop.raise_by=50", f"hydra.run.dir={run}"]) == 0
    given = json.loads((run / "hacking_answers.json").read_text())
    assert [a["answer"] for a in given] == ["rollback"]
    assert given[0]["to"] < given[0]["onset"]
    assert given[0]["beta"] == 0.01
    rows = read_jsonl(run / "metrics.jsonl")
    betas = {row["step"]: row["train/beta"] for row in rows if "train/beta" in row}
    assert all(beta == (0.0 if step <= given[0]["to"] else 0.01) for step, beta in betas.items())
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    lost = read_jsonl(run / "metrics_rolled_back_1.jsonl")
    assert lost[-1]["step"] == given[0]["step"]
    said = capsys.readouterr().out
    assert f"back to step {given[0]['to']}, with algo.beta 0.01" in said
    assert json.loads((run / "status.json").read_text())["state"] == "done"


@pytest.mark.usefixtures("cache")
def test_a_resumed_run_knows_its_baseline(tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    options = ["train", *SMALL, *REWARD, *WILD]
    assert dispatch([*options, f"hydra.run.dir={whole}"]) == 0
    assert dispatch([*options, "steps=3", f"hydra.run.dir={halved}"]) == 0
    assert dispatch(["train", f"resume={halved}", "steps=6"]) == 0

    def indices(run: Path) -> list[Any]:
        return [(r["step"], r.get("hacking/index")) for r in read_jsonl(run / "metrics.jsonl")]

    assert indices(whole) == indices(halved)
    assert HackingWatch(0.2).of(whole).onset == HackingWatch(0.2).of(halved).onset
    lower = [(r["step"], r["hacking/index_low"]) for r in read_jsonl(whole / "metrics.jsonl") if "hacking/index" in r]
    assert HackingWatch(0.2, by="index_low").of(whole).indices == lower


def test_hacking_began_at_the_first_of_two_in_a_row() -> None:
    indices = [(1, 0.1), (2, 0.6), (3, 0.2), (4, 0.7), (5, 0.5), (6, 0.1)]
    assert onset(indices, 0.5) == 4
    assert onset(indices, 0.6) is None
    assert onset(indices[:4], 0.5) is None  # one validation is noise
    assert HackingWatch(0.5, indices=indices).onset == 4
    assert not HackingWatch(0.5, indices=indices).suspicious


def test_the_best_checkpoint_is_one_that_was_kept() -> None:
    """A validation that looks hacked is not saved where hacking stops the run, so it is not the best either."""
    wanted = SimpleNamespace(checkpoint=SimpleNamespace(every=0))
    best = Best("val/score", 1.0, step=10, value=0.5)
    session: Any = SimpleNamespace(config=wanted, best=best, validates=lambda step: True)
    session.answers = SimpleNamespace(saves_before=True)
    session.watch = SimpleNamespace(suspicious=True)
    assert not Session.due(session, 20, {"val/score": 0.9})
    assert best.step == 10
    session.watch = SimpleNamespace(suspicious=False)
    assert Session.due(session, 30, {"val/score": 0.8})
    assert best.step == 30
