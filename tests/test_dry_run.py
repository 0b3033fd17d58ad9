"""rlhf train --dry-run: the resolved config, an estimate that can be checked by hand, and nothing else."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import SMALL

from rlhf_cli.build import experiment
from rlhf_cli.cli import dispatch
from rlhf_cli.commands.dry_run import begun_at, duration, time_of, work
from rlhf_cli.config.compose import plan


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "load_actor", None)


def job(*overrides: str):
    return plan("train", [*SMALL, *overrides], multirun=False, config_dir=None).jobs[0]


def test_the_config_is_printed_and_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", "--dry-run", *SMALL, "algo=grpo", "seed=5", "hydra.run.dir=there"]) == 0
    said = capsys.readouterr().out
    assert yaml.safe_load(said) == job("algo=grpo", "seed=5").model_dump(by_alias=True)
    assert "it would go to there" in said
    assert "3 training steps · 24 rollouts, at most 192 tokens sampled · 6 optimizer steps" in said
    assert "3 validations, 18 responses in all, at most 144 tokens · at least 3 checkpoints" in said
    assert "time: not known" in said
    assert "memory: about" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_memory_is_told_of_a_gpu_that_is_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, dtype in ((), "bfloat16"), (("precision=fp32",), "float32"):
        assert dispatch(["train", "--dry-run", *SMALL, "device=cuda", *typed]) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# memory: ")]
        assert line.endswith(f"of a GPU's memory, in {dtype}")


def test_a_sweep_says_its_jobs_and_their_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["sweep", *SMALL, "algo.beta=0.1,0.2", "seed=1,2", "--dry-run", "hydra.sweep.dir=there"]) == 0
    said = capsys.readouterr().out
    assert "4 jobs" in said
    assert "algo.beta=0.2 seed=1" in said
    assert "12 training steps · 96 rollouts, at most 768 tokens" in said
    shared = yaml.safe_load(said)
    assert shared["steps"] == 3
    assert "beta" not in shared["algo"]
    assert "seed" not in shared
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "--dry-run", "algo.beat=1"], "Did you mean algo.beta?"),
        (["eval", "--dry-run"], "--dry-run is for rlhf train and rlhf sweep"),
        (["sweep", "--dry-run", "resume=x"], "drop resume="),
    ],
)
def test_what_is_wrong_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("begun", "overrides", "wanted"),
    [
        (0, ["steps=10", "val.every=4", "checkpoint.every=0"], (10, 80, 4, 1)),  # steps 0, 4, 8 and 10
        (8, ["steps=10", "val.every=4", "checkpoint.every=0"], (2, 16, 1, 1)),
        (10, ["steps=10", "val.every=4"], (0, 0, 0, 0)),
        (0, ["steps=0"], (0, 0, 1, 0)),
    ],
)
def test_what_a_run_takes(begun: int, overrides: list[str], wanted: tuple[int, ...]) -> None:
    takes = work(job(*overrides), begun)
    assert tuple(takes[key] for key in ("steps", "rollouts", "validations", "checkpoints")) == wanted


def test_a_resumed_run_has_only_the_rest_to_do(tmp_path: Path) -> None:
    config = job().model_copy(update={"resume": str(tmp_path)})
    assert begun_at(config, ".") == 0
    assert begun_at(config.model_copy(update={"resume": "auto"}), "nowhere") == 0
    assert begun_at(job(), str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("like", "status", "said"),
    [
        (["seed=9", "optim.actor_lr=1"], {}, "about 60 s, at the pace of outputs/run"),  # 10 s a step, 3 steps, 2 jobs
        (["rollout.batch_size=16"], {}, "not known"),
        (["val.every=1"], {}, "not known"),
        ([], {"host": "elsewhere"}, "not known"),
        ([], {"state": "failed"}, "not known"),
        ([], {"seconds": 0.0}, "not known"),
    ],
)
def test_a_time_is_told_only_after_a_run_of_the_same_shape(
    like: list[str], status: dict[str, object], said: str
) -> None:
    run = Path("outputs/run")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(job(*like).model_dump(by_alias=True)))
    done = {"state": "done", "step": 20, "seconds": 200.0, "host": socket.gethostname(), "heartbeat": 1.0}
    (run / "status.json").write_text(json.dumps(done | status))
    assert time_of([job(), job("algo.beta=1")], [3, 3]).startswith(said)


def test_durations() -> None:
    assert [duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
