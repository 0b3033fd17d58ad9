"""Reward models from ranked responses: reading, training, and using them as a reward."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.miniatures import build
from rlhf_cli.preferences.fit import collate, examine
from rlhf_cli.preferences.ranked import RankedGroup, read_ranked, split, write_ranked
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.runs import reward_training as reward_run
from rlhf_cli.runs.status import read_status
from rlhf_cli.tracking.jsonl import read_jsonl


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"responses": ["a", "b"]}', 'line 2: "prompt"'),
        ('{"prompt": "x", "responses": ["a"]}', "at least 2"),
        ('{"prompt": "x", "responses": ["a", "b"], "ranks": [1]}', "2 whole numbers"),
        ('{"prompt": "x", "responses": ["a", "b"], "ranks": [1, 1]}', "nothing is preferred"),
        ('{"prompt": "x", "responses": ["a", "b"], "ranks": [true, false]}', "2 whole numbers"),
        ('{"prompt": "x\\ud83d", "responses": ["a", "b"]}', "line 2: half a surrogate pair"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "ranked.jsonl"
    file.write_text('{"prompt": "x", "responses": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_ranked(file)


def test_what_is_written_is_read_again_best_first(tmp_path: Path) -> None:
    groups = [RankedGroup("é 😀", ["worst", "best", "also best"], [1, 0, 0]), RankedGroup("B", ["x", "y"], [0, 1])]
    write_ranked(tmp_path / "ranked.jsonl", groups)
    first, second = read_ranked(tmp_path / "ranked.jsonl")
    assert first == RankedGroup("é 😀", ["best", "also best", "worst"], [0, 0, 1])
    assert second == groups[1]


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    groups = [RankedGroup(f"prompt {i // 3}", ["x", "y"], [0, 1]) for i in range(60)]
    training, held = split(groups, 0.2, seed=0)
    assert len(held) == 3 * 4
    assert len(training) == 3 * 16
    assert not {g.prompt for g in training} & {g.prompt for g in held}
    assert split(groups, 0.2, seed=0) == (training, held)
    assert split(groups, 0.2, seed=1) != (training, held)
    with pytest.raises(UserError, match="1 different prompts"):
        split(groups[:3], 0.5, seed=0)


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


def test_pairs_that_the_model_cannot_tell_apart_are_left_out(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal texts, and such as truncation makes equal: a long prompt loses its start, and never the response."""
    path = build.miniature("roberta_base", source="generated", cache_dir=cache)
    reward = LearnedReward(path, device=torch.device("cpu"), batch_size=8, dtype=torch.float32, new_head=True)
    long = RankedGroup("a film " * 700, ["that I loved", "that I hated"], [0, 1])
    half = RankedGroup("film", ["good", "good", "bad"], [0, 1, 2])
    assert reward_run.told_apart([long, RankedGroup("film", ["same", "same"], [0, 1]), half], reward) == [
        long,
        RankedGroup("film", ["good", "bad"], [0, 2]),
    ]
    said = capsys.readouterr().out
    assert "2 texts are longer than" in said
    assert "their prompts lose their start" in said
    assert "2 responses are equal to another of their prompt and are left out; 2 groups are left" in said
    with pytest.raises(UserError, match="nothing to learn from"):
        reward_run.told_apart([RankedGroup("film", ["same", "same"], [0, 1])], reward)


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
    held = split(read_ranked(data), 0.2, seed=0)[1]
    scores = reward.score(collate(held)[0])
    assert abs(float(scores.mean())) < 0.05
    assert float(scores.std()) == pytest.approx(1, abs=0.05)
    used = ["train", *SMALL, "reward=learned", f"reward.path={folder}", "steps=0"]
    assert dispatch([*used, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert dispatch([*used, "reward.normalize=false", f"hydra.run.dir={tmp_path / 'raw'}"]) == 0
    normalized, raw = (read_jsonl(tmp_path / name / "metrics.jsonl")[0]["val/score"] for name in ("run", "raw"))
    assert normalized == pytest.approx((raw - reward.mean) / reward.std, abs=1e-4)
    metrics, _ = examine(reward, held)
    assert metrics["val/pairwise_accuracy"] == pytest.approx(rows[-1]["val/pairwise_accuracy"])


def test_synthesises_from_a_judge(cache, tmp_path: Path) -> None:
    options = ["reward_train.prompts=8", "reward_train.responses=3", "reward_train.epochs=1"]
    assert dispatch(["reward-train", *SMALL, *options, f"hydra.run.dir={tmp_path}"]) == 0
    assert (tmp_path / "reward_model" / "config.json").exists()
    groups = read_ranked(tmp_path / "ranked.jsonl")
    assert all(len(g.responses) == 3 and g.ranks == sorted(g.ranks) for g in groups)
    assert read_status(tmp_path)["state"] == "done"


def test_a_judge_without_a_model_starts_from_roberta_large(cache, tmp_path: Path) -> None:
    data, options = ranked_file(tmp_path, 10), ["reward_train.epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert dispatch(["reward-train", *SMALL, "reward=vader", f"reward_train.data={data}", *options]) == 0
    assert not list(Path(os.environ["RLHF_CACHE"]).glob("miniatures/*/vader"))


def test_the_seed_decides(cache, tmp_path: Path) -> None:
    data = ranked_file(tmp_path, 10)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = [f"reward_train.data={data}", f"seed={seed}", f"hydra.run.dir={tmp_path / name}"]
        assert dispatch(["reward-train", *SMALL, *options]) == 0
    a, b, c = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in "abc")
    assert a == b
    assert a != c


def test_a_finished_run_is_never_overwritten(cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["reward-train", *SMALL, f"reward_train.data={ranked_file(tmp_path, 10)}", "reward_train.epochs=1"]
    run = tmp_path / "run"
    assert dispatch([*again, f"hydra.run.dir={run}"]) == 0
    weights = (run / "reward_model" / "model.safetensors").read_bytes()
    assert dispatch([*again, "seed=1", f"hydra.run.dir={run}"]) == 2
    assert "already holds a run: choose another hydra.run.dir=" in capsys.readouterr().err
    assert dispatch([*again, "seed=1", f"resume={run}"]) == 2
    assert "does not resume" in capsys.readouterr().err
    assert (run / "reward_model" / "model.safetensors").read_bytes() == weights
    assert read_status(run)["state"] == "done"


def test_a_sweep_shows_the_accuracy(cache, tmp_path: Path) -> None:
    data = ranked_file(tmp_path, 10)
    swept = ["reward_train.epochs=1,2", f"reward_train.data={data}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert dispatch(["reward-train", "--multirun", *SMALL, *swept]) == 0
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())["jobs"]
    assert [row["state"] for row in rows] == ["done", "done"]
    assert all(0 <= row["val/pairwise_accuracy"] <= 1 for row in rows)


def test_a_failure_is_recorded(cache, tmp_path: Path) -> None:
    options = [f"reward_train.data={ranked_file(tmp_path, 40)}", "reward_train.lr=1e30", f"hydra.run.dir={tmp_path}/r"]
    assert dispatch(["reward-train", *SMALL, *options]) == 1
    status = read_status(tmp_path / "r")
    assert status["state"] == "failed"
    assert "learning rate" in status["error"]
    assert "learning rate" in (tmp_path / "r" / "error.log").read_text()


def test_a_signal_while_sampling_keeps_what_was_sampled(cache, tmp_path: Path) -> None:
    sampled = reward_run._ranked_samples

    def first_samples(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return sampled(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_run, "_ranked_samples", first_samples)
        options = ["reward_train.prompts=60", "reward_train.responses=4", f"hydra.run.dir={tmp_path}"]
        assert dispatch(["reward-train", *SMALL, *options]) == 130
    assert read_status(tmp_path)["state"] == "interrupted"
    assert 0 < len(read_ranked(tmp_path / "ranked.jsonl")) <= 16  # AT_ONCE // 4


def test_a_signal_ends_it_after_the_step_with_the_model_saved(cache, tmp_path: Path) -> None:
    examined = reward_run.examine

    def first_examination(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return examined(*args)

    data = ranked_file(tmp_path, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_run, "examine", first_examination)
        code = dispatch(["reward-train", *SMALL, f"reward_train.data={data}", f"hydra.run.dir={tmp_path / 'r'}"])
    assert code == 143
    status = read_status(tmp_path / "r")
    assert (status["state"], status["step"]) == ("interrupted", 1)
    assert "val/pairwise_accuracy" in read_jsonl(tmp_path / "r" / "metrics.jsonl")[-1]
    LearnedReward(tmp_path / "r" / "reward_model", device=torch.device("cpu"), batch_size=4, dtype=torch.float32)


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
    from rlhf_cli.preferences import continual

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
