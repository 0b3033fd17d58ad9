"""One run on two processes (gloo): the same numbers as on one, written once; checkpoints go either way; no hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import numbers

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import CONF
from rlhf_cli.engine import processes as distributed
from rlhf_cli.miniatures import build
from rlhf_cli.runs.checkpoint import load_trainer
from rlhf_cli.runs.status import read_status
from rlhf_cli.tracking.jsonl import read_jsonl

SMALL = [
    "scale=mini", "device=cpu", "tracking=none", "steps=3", "data.train=30", "data.test=12", "data.labeler=vader",
    "val.prompts=6", "val.every=2", "checkpoint.every=1", "rollout.batch_size=8", "rollout.max_response_length=8",
    "optim.micro_batch_size=3", "reward=vader", "gold=none",
]  # fmt: skip
PATIENCE = 400


@pytest.fixture(scope="module", autouse=True)
def actor(cache: Path) -> Path:
    return build.miniature("qwen_instruct", source="generated", cache_dir=cache, seed=0, notify=lambda _: None)


def on_two(*argv: str) -> list[int]:
    """The exit codes of the command on two forked processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 70
            try:
                code = dispatch(list(argv))
            finally:
                os._exit(code)
        children.append(child)
    end = time.monotonic() + PATIENCE
    codes: dict[int, int] = {}
    while len(codes) < 2:
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > end:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
            pytest.fail(f"it hangs: {codes}")
        time.sleep(0.05)
    return [codes[child] for child in children]


def same(one: Path, two: Path) -> None:
    """Equal tokens, nearly equal numbers."""
    assert [r["response"] for r in read_jsonl(one / "samples.jsonl")] == [
        r["response"] for r in read_jsonl(two / "samples.jsonl")
    ]
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "algo",
    [
        ["ppo", "critic=shared", "algo.ptx=0.1"],
        ["dapo", "algo.group_size=4"],
        ["trpo"],
        ["ppo_full", "reward=roberta_base", "hacking.outliers=true"],
    ],
)
def test_two_processes_give_the_numbers_of_one(tmp_path: Path, algo: list[str]) -> None:
    argv = ["train", *SMALL, f"algo={algo[0]}", *algo[1:], "steps=2"]
    assert dispatch([*argv, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    assert on_two(*argv, f"hydra.run.dir={tmp_path / 'two'}") == [0, 0]
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "more", [["algo=ppo"], ["algo=grpo", "algo.group_size=4", "optim.gradient_checkpointing=true"]]
)
def test_split_models_give_the_numbers_of_whole_ones(tmp_path: Path, more: list[str]) -> None:
    argv = ["train", *SMALL, "optim.schedule=constant", *more]
    assert dispatch([*argv, f"hydra.run.dir={tmp_path / 'one'}"]) == 0
    assert on_two(*argv, "shard=true", "steps=2", f"hydra.run.dir={tmp_path / 'two'}") == [0, 0]
    assert dispatch(["train", f"resume={tmp_path / 'two'}", "steps=3", "shard=false"]) == 0
    same(tmp_path / "one", tmp_path / "two")
    assert on_two("train", f"resume={tmp_path / 'one'}", "steps=4", "shard=true") == [0, 0]
    assert dispatch([*argv, "steps=4", f"hydra.run.dir={tmp_path / 'longer'}"]) == 0
    keys = numbers(tmp_path / "longer")[4].keys()
    assert {k: numbers(tmp_path / "one")[4][k] for k in keys} == pytest.approx(
        numbers(tmp_path / "longer")[4], rel=1e-3, abs=1e-4
    )


def test_checkpoints_of_two_resume_on_one_and_the_other_way_round(tmp_path: Path) -> None:
    whole, back, forth = (tmp_path / name for name in ("whole", "back", "forth"))
    assert dispatch(["train", *SMALL, f"hydra.run.dir={whole}"]) == 0
    assert on_two("train", *SMALL, "steps=2", f"hydra.run.dir={back}") == [0, 0]
    assert dispatch(["train", f"resume={back}", "steps=3"]) == 0
    assert dispatch(["train", *SMALL, "steps=2", f"hydra.run.dir={forth}"]) == 0
    assert on_two("train", f"resume={forth}", "steps=3") == [0, 0]
    for folder in (back, forth):
        assert [row["step"] for row in numbers(folder)] == [0, 1, 2, 3]
        for key, value in numbers(whole)[3].items():
            assert numbers(folder)[3][key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
        ours, theirs = (load_trainer(f / "checkpoints" / "step_000003")[0] for f in (whole, folder))
        for key, slots in ours["actor_optimizer"]["state"].items():
            torch.testing.assert_close(
                theirs["actor_optimizer"]["state"][key]["exp_avg"], slots["exp_avg"], rtol=1e-2, atol=1e-5
            )


def test_what_the_first_refuses_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert on_two("train", *SMALL, f"hydra.run.dir={tmp_path}") == [2, 2]
    assert capfd.readouterr().err.count("already holds a run") == 1
    assert on_two("eval", *(o for o in SMALL if not o.startswith("checkpoint"))) == [2, 2]
    assert "torchrun is for one" in capfd.readouterr().err
    assert on_two("train", *SMALL, "val.prompts=1", f"hydra.run.dir={tmp_path / 'new'}") == [2, 2]
    assert "start fewer" in capfd.readouterr().err


REWARD = """
import os, signal
calls = []
def fn(prompts, responses):
    calls.append(1)
    if len(calls) == 3 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), getattr(signal, os.environ["BLOW"]))
    return [float(len(r)) for r in responses]
"""


def test_a_signal_to_one_stops_both_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blow.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BLOW", "SIGTERM")
    options = ["reward=python", "reward.fn=blow:fn", "checkpoint.every=0", f"hydra.run.dir={tmp_path / 'run'}"]
    assert on_two("train", *SMALL, *options) == [143, 143]
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step_000002\n"


def test_a_dead_process_ends_the_job_under_torchrun(
    tmp_path: Path, actor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blow.py").write_text(REWARD)
    environment = os.environ | {"BLOW": "SIGKILL", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CONF.parent)])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    models = [f"actor.path={actor}", "critic=qwen_instruct"]  # the critic follows: nothing is built in there
    options = ["reward=python", "reward.fn=blow:fn", *models, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*torchrun, "-m", "rlhf_cli", "train", *SMALL, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert done.stdout.count("validation at 0") <= 1  # said once, if torchrun handed it on
    # its third call is in step 2, to which nobody comes before the first process has recorded step 1
    assert [row["step"] for row in numbers(tmp_path / "run")] == [0, 1]


def test_alone_nothing_happens() -> None:
    x = torch.arange(3.0)
    assert (distributed.world(), distributed.rank()) == (1, 0)
    assert distributed.share(5) == slice(0, 5)
    assert distributed.gather(x) == [x]
    assert distributed.rows(x) is x
    assert distributed.summed(x) is x
    assert distributed.first(lambda: 3) == 3
