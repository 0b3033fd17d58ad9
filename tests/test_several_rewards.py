"""Several rewards: how they become one, what each gives to what is learned, and scales that differ."""

import math
from pathlib import Path

import pytest
import torch
from helpers.bandit import BEST, Bandit
from helpers.runs import numbers, train

from rlhf_cli.cli import dispatch
from rlhf_cli.rewards.combine import additive_shares, apart, combined, setting_shares, shaped
from rlhf_cli.rewards.scorer import Scorer, Texts
from rlhf_cli.rl.moments import RunningMoments

VALUES = {"x": torch.tensor([0.2, 0.8]), "y": torch.tensor([0.6, 0.4])}
EVEN = {"x": 1.0, "y": 1.0}


def test_uncertainty_by_hand_and_its_limits() -> None:
    told = combined(VALUES, {"x": 1.0, "y": 3.0}, "uncertainty", aversion=2.0)
    by_hand = -math.log(0.25 * math.exp(-0.4) + 0.75 * math.exp(-1.2)) / 2
    assert told[0].item() == pytest.approx(by_hand, abs=1e-6)
    doubles = {name: x.double() for name, x in VALUES.items()}
    mean, least = combined(doubles, EVEN, "mean"), combined(doubles, EVEN, "min")
    torch.testing.assert_close(combined(doubles, EVEN, "uncertainty", aversion=1e-6), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(combined(doubles, EVEN, "uncertainty", aversion=1e4), least, atol=1e-3, rtol=0)
    small = combined(doubles, EVEN, "uncertainty", aversion=0.01)  # mean − a/2 variance: 0.4 − 0.005 · 0.04
    assert small[0].item() == pytest.approx(0.4 - 0.005 * 0.04, abs=1e-7)


def test_saturation_and_cap_by_hand() -> None:
    told = shaped(torch.tensor([0.0, 2.0, 100.0]), saturate=2.0)
    assert told.tolist() == pytest.approx([0.0, 2 * math.tanh(1), 2.0])
    assert shaped(torch.tensor([0.3, 0.9]), cap=0.5).tolist() == pytest.approx([0.3, 0.5])
    assert shaped(torch.tensor([0.3, 9.0]), saturate=1.0, cap=0.5).tolist() == pytest.approx([math.tanh(0.3), 0.5])


def test_a_cap_is_on_the_reward_not_on_the_raw_score() -> None:
    texts = Texts(["", ""], ["", ""], ["a", "b"], [[1], [2]])
    rewards = Scorer({"x": lambda t: VALUES["x"]}, {"x": 2.0}, shapes={"x": {"saturate": None, "cap": 0.5}})(texts)
    assert rewards.score.tolist() == pytest.approx([0.4, 1.6])
    assert rewards.reward.tolist() == pytest.approx([0.4, 1.0])


def test_groups_are_normalised_apart_by_hand() -> None:
    """Two groups of two; in a group of two, (r − mean)/std with ddof 1 is ±1/√2."""
    values = {"x": torch.tensor([0.0, 1.0, 0.0, 1.0]), "y": torch.tensor([0.0, 100.0, 100.0, 0.0])}
    group = torch.tensor([0, 0, 1, 1])
    parts = apart(values, {"x": 1.0, "y": 1.0}, group, None)
    total = parts["x"] + parts["y"]
    # sums of signs: (−2, 2, 0, 0)/√2, whose deviation (ddof 1) is √(4/3)
    expected = torch.tensor([-math.sqrt(2), math.sqrt(2), 0.0, 0.0]) / math.sqrt(4 / 3)
    torch.testing.assert_close(total, expected, atol=2e-5, rtol=0)


def test_running_statistics_are_those_of_all_that_was_seen() -> None:
    torch.manual_seed(0)
    batches = [3 + 50 * torch.randn(n, dtype=torch.float64) for n in (5, 1, 8)]
    seen = RunningMoments()
    for batch in batches:
        seen.update("x", batch)
    whole = torch.cat(batches)
    expected = (batches[-1] - whole.mean()) / (whole.std() + 1e-6)
    torch.testing.assert_close(seen.normalised("x", batches[-1]), expected)
    again = RunningMoments()
    again.load_state_dict(seen.state_dict())
    assert again.normalised("x", batches[0]).equal(seen.normalised("x", batches[0]))
    seen.update("flat", torch.ones(3))
    assert seen.normalised("flat", torch.ones(3)).tolist() == [0, 0, 0]


def test_shares_by_hand() -> None:
    group = torch.tensor([0, 0])
    shares = additive_shares({"x": torch.tensor([0.0, 1.0]), "y": torch.tensor([0.0, 3.0])}, group, grouped=True)
    assert shares == pytest.approx({"x": 0.25, "y": 0.75})
    against = additive_shares({"x": torch.tensor([0.0, 3.0]), "y": torch.tensor([0.0, -1.0])}, group, grouped=False)
    assert against == pytest.approx({"x": 1.5, "y": -0.5})
    assert setting_shares(VALUES, EVEN, "min", aversion=1.0) == {"x": 0.5, "y": 0.5}
    told = setting_shares(VALUES, EVEN, "uncertainty", aversion=5.0)
    strict = [1 / (1 + math.exp(-5 * 0.4)), 1 / (1 + math.exp(5 * 0.4))]
    assert told["x"] == pytest.approx(sum(strict) / 2)


SECOND = 7
"""The arm that the loud reward likes a little more, and the quiet one not at all."""


def loud(texts: Texts) -> torch.Tensor:
    return torch.tensor([{(BEST,): 90.0, (SECOND,): 100.0}.get(tuple(row), 0.0) for row in texts.tokens])


def quiet(texts: Texts) -> torch.Tensor:
    return torch.tensor([float(row == [BEST]) for row in texts.tokens])


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_a_quiet_reward_is_drowned_by_a_sum_and_heard_when_normalised(algo: str) -> None:
    chances, shares = {}, {}
    for how in ("sum", "normalised_sum"):
        moments = RunningMoments() if algo == "ppo" and how == "normalised_sum" else None
        reward = Scorer({"loud": loud, "quiet": quiet}, {"loud": 1.0, "quiet": 2.0}, how, moments=moments)
        more = ("reward=mix", f"reward.combine={how}")
        bandit = Bandit(f"algo={algo}", *more, reward=reward)
        for number in range(1, 41):
            metrics = bandit.step(number)
            if number == 1:
                shares[how] = metrics["train/advantage_share/quiet"]
        chances[how] = bandit.chance()
        print(algo, how, bandit.chance())
    assert shares["sum"] < 0.05
    assert shares["normalised_sum"] > 0.25
    assert chances["sum"] < 0.5
    assert chances["normalised_sum"] > 0.8


@pytest.mark.parametrize("output", ["logit", "log_probability"])
def test_outputs_of_a_classifier(output: str, cache) -> None:
    from rlhf_cli.build.paths import classifier_path
    from rlhf_cli.config.compose import plan
    from rlhf_cli.rewards.classifier import Classifier

    config = plan("train", ["scale=mini"], multirun=False, config_dir=None).jobs[0]
    judge = Classifier(
        classifier_path("roberta_base", config, print), device=torch.device("cpu"), batch_size=4, dtype=torch.float32
    )
    texts = ["a dull film", "great fun"]
    chance = judge.score(texts, "negative").double()
    expected = {"logit": (chance / (1 - chance)).log(), "log_probability": chance.log()}[output]
    torch.testing.assert_close(judge.score(texts, "negative", output).double(), expected, atol=1e-3, rtol=1e-3)


def test_running_statistics_survive_a_resume(cache, tmp_path: Path) -> None:
    several = ("reward=mix", "reward.combine=normalised_sum", "reward.sources.roberta_large.output=logit")
    assert train(tmp_path / "whole", *several) == 0
    assert train(tmp_path / "cut", *several, "steps=2") == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=3"]) == 0
    whole, cut = numbers(tmp_path / "whole"), numbers(tmp_path / "cut")
    last = [[row for row in rows if row["step"] == 3 and "train/reward" in row][-1] for rows in (whole, cut)]
    shown = {k for k in last[0] if k.startswith("train/")} - {"train/lr"}
    assert {k: last[0][k] for k in shown} == {k: last[1][k] for k in shown}
    assert {"train/advantage_share/roberta_large", "train/advantage_share/form"} <= shown
