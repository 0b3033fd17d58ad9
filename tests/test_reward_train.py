"""Reward models from ranked responses: reading, training, and using them as a reward."""

import json
from pathlib import Path

import pytest
import torch
from test_training import SMALL, TINY

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.miniatures import build
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.ranked import RankedGroup, read_ranked
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.training.reward_model import collate, examine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Recipe", lambda: TINY)
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"responses": ["a", "b"]}', 'line 2: "prompt"'),
        ('{"prompt": "x", "responses": ["a"]}', "at least 2"),
        ('{"prompt": "x", "responses": ["a", "b"], "ranks": [1]}', "2 whole numbers"),
        ('{"prompt": "x", "responses": ["a", "b"], "ranks": [1, 1]}', "nothing is preferred"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "ranked.jsonl"
    file.write_text('{"prompt": "x", "responses": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_ranked(file)


def ranked_file(folder: Path, count: int) -> Path:
    """The response with "dull" in it is the better one."""
    rows = [
        {"prompt": f"Film {i} is", "responses": [f"dull number {i}.", f"bright number {i}.", f"great number {i}."],
         "ranks": [0, 1, 1]}
        for i in range(count)
    ]  # fmt: skip
    file = folder / "ranked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_collate_keeps_groups_together() -> None:
    groups = [RankedGroup("A", ["x", "y"], [0, 1]), RankedGroup("B", ["z", "v", "w"], [1, 0, 0])]
    texts, ranks, ids = collate(groups)
    assert texts == ["A x", "A y", "B z", "B v", "B w"]
    assert ranks.tolist() == [0, 1, 1, 0, 0]
    assert ids.tolist() == [0, 0, 1, 1, 1]


def test_learns_a_preference_from_a_file_and_then_rewards_with_it(cache, tmp_path: Path) -> None:
    data, run = ranked_file(tmp_path, 60), tmp_path / "rm"
    options = [f"reward_train.data={data}", "reward_train.lr=1e-3", "reward_train.epochs=8", f"hydra.run.dir={run}"]
    assert dispatch(["reward-train", *SMALL, *options]) == 0
    rows = read_jsonl(run / "metrics.jsonl")
    assert rows[-1]["val/pairwise_accuracy"] > 0.95
    assert rows[-1]["val/pairwise_loss"] < rows[0]["val/pairwise_loss"]
    bins = json.loads((run / "calibration.json").read_text())
    assert sum(row["n"] for row in bins) == 12 * 2  # two pairs a held-out prompt: ties make none
    folder = run / "reward_model"
    reward = LearnedReward(folder, device=torch.device("cpu"), batch_size=4, dtype=torch.float32)
    dull, great = reward.score(["Film 3 is dull number 3.", "Film 3 is great number 3."]).tolist()
    assert dull > great
    everything = [f"Film {i} is {word} number {i}." for i in range(12) for word in ("dull", "bright", "great")]
    scores = reward.score(everything)  # the held-out responses
    assert abs(float(scores.mean())) < 0.05
    assert float(scores.std()) == pytest.approx(1, abs=0.05)
    used = ["reward=learned", f"reward.path={folder}", "steps=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert dispatch(["train", *SMALL, *used]) == 0
    metrics, _ = examine(reward, read_ranked(data)[:12])
    assert metrics["val/pairwise_accuracy"] == pytest.approx(rows[-1]["val/pairwise_accuracy"])


def test_synthesises_from_a_judge(cache, tmp_path: Path) -> None:
    options = ["reward_train.prompts=8", "reward_train.responses=3", "reward_train.epochs=1"]
    assert dispatch(["reward-train", *SMALL, *options, f"hydra.run.dir={tmp_path}"]) == 0
    assert (tmp_path / "reward_model" / "config.json").exists()


def test_iterative_grpo_trains_its_reward_model_on_and_resumes(cache, tmp_path: Path) -> None:
    options = ["reward_train.prompts=8", "reward_train.responses=3", "reward_train.epochs=1"]
    assert dispatch(["reward-train", *SMALL, *options, f"hydra.run.dir={tmp_path / 'rm'}"]) == 0
    common = ["train", *SMALL, "algo=grpo_iterative", "algo.group_size=4", "algo.steps_per_iteration=2", "steps=5"]
    common += ["reward=learned", f"reward.path={tmp_path / 'rm' / 'reward_model'}", "algo.retrain_lr=1e-3"]
    assert dispatch([*common, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    assert dispatch([*common, "steps=3", f"hydra.run.dir={tmp_path / 'cut'}"]) == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=5"]) == 0
    whole, cut = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for step in (4, 5):
        for key in ("train/score", "train/kl", "train/grad_norm"):
            assert cut[step][key] == whole[step][key], key
    assert "train/reward_model_accuracy" in whole[2]
    assert whole[4]["train/reward_model_accuracy"] == cut[4]["train/reward_model_accuracy"]
    one, other = (tmp_path / "rm" / "reward_model", tmp_path / "whole" / "checkpoints" / "step_000005" / "reward_model")
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_replay_mixes_in_its_share() -> None:
    from rlhf_cli.training import continual

    seen: list[int] = []

    def fake_fit(reward, groups, *, tick, **_):
        seen.append(len(groups))
        tick({"train/pairwise_accuracy": 1.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continual, "fit", fake_fit)
        group = RankedGroup("A", ["x", "y"], [0, 1])
        more = {"history": 0.1, "epochs": 1, "batch": 4, "lr": 1e-3, "seed": 0}
        learner = continual.Continual(reward=None, judge=None, fresh=[group] * 90, replay=[group] * 50, **more)
        assert learner.train(20)["train/replayed_groups"] == 10
        assert learner.train(40) == {}
    assert seen == [100]
    assert len(learner.replay) == 140
    assert not learner.fresh


def test_a_classifier_is_no_learned_reward(cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build.miniature("roberta_base", source="generated", cache_dir=tmp_path)
    assert dispatch(["train", *SMALL, "reward=learned", f"reward.path={folder}", f"hydra.run.dir={tmp_path}/r"]) == 2
    assert "rlhf reward-train" in capsys.readouterr().err
    assert dispatch(["train", *SMALL, "reward=learned"]) == 2
    assert "reward.path must be given" in capsys.readouterr().err
