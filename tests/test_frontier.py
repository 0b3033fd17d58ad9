"""What could have been reached: against enumeration, against the closed form, and the command."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.runs import train

from rlhf_cli.cli import dispatch
from rlhf_cli.commands.frontier import show
from rlhf_cli.evaluation.frontier import Point, best_of_n, best_of_n_kl, fitted, optimal, past_the_peak, reached

REWARDS = torch.tensor([[0.1, 0.9, 0.4, 0.6], [0.5, 0.2, 0.8, 0.3]])
GOLD = torch.tensor([[0.9, 0.1, 0.5, 0.6], [0.4, 0.2, 0.7, 0.1]])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_best_of_n_is_the_mean_over_all_choices_of_n(n: int) -> None:
    found = best_of_n(REWARDS, GOLD, [n])[0]
    rewards, golds = [], []
    for row, gold in zip(REWARDS.tolist(), GOLD.tolist(), strict=True):
        for chosen in itertools.combinations(range(4), n):
            best = max(chosen, key=row.__getitem__)
            rewards.append(row[best])
            golds.append(gold[best])
    assert found.reward == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    assert found.gold == pytest.approx(sum(golds) / len(golds), abs=1e-6)
    assert found.kl == pytest.approx(math.log(n) - (n - 1) / n)


def test_more_than_there_are_cannot_be_asked_for() -> None:
    assert [point.n for point in best_of_n(REWARDS, None, [1, 4, 8])] == [1, 4]
    assert best_of_n_kl(1) == 0


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_optimal_policy_of_a_small_distribution(beta: float) -> None:
    """All of a uniform reference's four responses are the samples: the estimate is the exact policy."""
    point = optimal(REWARDS[:1], GOLD[:1], [beta])[0]
    policy = (REWARDS[0].double() / beta).softmax(0)
    assert point.reward == pytest.approx(float(policy @ REWARDS[0].double()))
    assert point.gold == pytest.approx(float(policy @ GOLD[0].double()))
    assert point.kl == pytest.approx(float((policy * (policy / 0.25).log()).sum()))
    assert point.ess == pytest.approx(1 / float(policy.square().sum()))


def test_a_curve_that_turns_is_found_and_where() -> None:
    kls = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    true = [0.3 + (math.sqrt(kl) * (0.3 - 0.2 * math.log(math.sqrt(kl))) if kl else 0.0) for kl in kls]
    curve = fitted(kls, true)
    assert curve is not None
    assert (curve.alpha, curve.beta) == (pytest.approx(0.3), pytest.approx(0.2))
    assert curve.peak == pytest.approx(math.exp(2 * (0.3 / 0.2 - 1)))
    assert curve.at(2.0) == pytest.approx(true[3])
    assert past_the_peak(kls, true)
    assert not past_the_peak(kls[:4], [0.3, 0.4, 0.5, 0.6])
    assert fitted(kls[:3], true[:3]) is None


def test_the_share_of_what_best_of_n_gains_at_this_kl() -> None:
    best = best_of_n(REWARDS, None, [1, 2, 4])
    assert reached(Point(best[1].kl, best[1].reward, None), best) == pytest.approx(1)
    assert reached(Point(best[1].kl, best[0].reward, None), best) == pytest.approx(0)
    assert reached(Point(50.0, 1.0, None), best) is None


def test_the_command_writes_what_it_promises(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(run, "reward=roberta_base", "gold=vader", "val.every=1") == 0
    out = tmp_path / "out"
    assert dispatch(["frontier", str(run), f"out={out}", "frontier.samples=4", "frontier.n=[2,4,8]"]) == 0
    told = json.loads((out / "frontier.json").read_text())
    assert [row["n"] for row in told["best_of_n"]] == [1, 2, 4]
    assert all(set(row) == {"n", "kl", "reward", "gold"} for row in told["best_of_n"])
    assert all(set(row) == {"beta", "kl", "reward", "gold", "ess"} for row in told["optimal"])
    assert [row["step"] for row in told["checkpoints"]] == [0, 1, 2, 3]
    assert {row["run"] for row in told["checkpoints"]} == {"run"}
    assert told["best_of_n"][0]["reward"] <= told["best_of_n"][-1]["reward"]
    assert (out / "frontier.png").stat().st_size > 5000
    assert "best of 4" in capsys.readouterr().out
    assert dispatch(["frontier"]) == 2
    assert "give the folders of runs" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_word_of_the_tables_breaks(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With three judges a table of the runs does not fit 80 columns; then a run is a paragraph."""
    gold = {"gold": 0.5} | {f"gold/{name}": 0.5 for name in ("vader", "roberta_base", "roberta_large")}
    told = {
        "best_of_n": [{"n": n, "kl": 1.0, "reward": 0.7, **gold} for n in (1, 16)],
        "optimal": [{"beta": 0.05, "kl": 1.2, "reward": 0.7, "ess": 1.5, **gold}],
        "checkpoints": [{"run": "a_run_of_ppo", "step": s, "kl": float(s), "reward": 0.8, **gold} for s in range(4)],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        show(told)
    shown = capsys.readouterr().out
    words = {"optimal,", "a_run_of_ppo", "reward", "vader", "roberta_base", "roberta_large", "best-of-n's"}
    assert words - set(shown.replace("┃", " ").replace("│", " ").split()) == set()
    assert max(map(len, shown.splitlines())) <= width
    assert "* not to be believed" in shown
