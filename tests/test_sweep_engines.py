"""The engines of a sweep: processes of joblib, submitit's local executor, and what a signal does there."""

import json
import os
from pathlib import Path

import pytest

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import CONF, plan
from rlhf_cli.miniatures import build
from rlhf_cli.runs.status import read_status
from rlhf_cli.sweeps.sweep import concurrent, cores
from rlhf_cli.tracking.jsonl import read_jsonl

SMALL = [
    "scale=mini", "tracking=none", "steps=3", "data.train=30", "data.test=12", "data.labeler=vader", "val.prompts=6",
    "val.every=0", "checkpoint.every=0", "rollout.batch_size=8", "rollout.max_response_length=8",
    "optim.micro_batch_size=4", "gold=none", "reward=python", "reward.fn=watched:fn",
]  # fmt: skip

# Notes who calls; where the file SIGNAL names a signal, sends it to itself at the third call and takes the file away.
REWARD = """
import os, signal
from pathlib import Path
import torch
here = Path(os.environ["WATCH"])
calls = []
def fn(prompts, responses):
    calls.append(1)
    note = here / "SIGNAL"
    if len(calls) == 3 and note.exists():
        number = getattr(signal, note.read_text())
        note.unlink()
        os.kill(os.getpid(), number)
    with (here / "calls").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\\n")
    return [float(len(r)) for r in responses]
def short(prompts, responses):
    return []
"""


@pytest.fixture(scope="module")
def actor(cache: Path) -> Path:
    """A tiny actor that other processes find by its path."""
    return build.miniature("qwen_instruct", source="generated", cache_dir=cache, seed=0, notify=lambda _: None)


@pytest.fixture
def sweep(cache: Path, actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "watched.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CONF.parent), os.environ.get("PYTHONPATH", "")]),
        "WATCH": str(tmp_path),
        "RLHF_CACHE": str(cache),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def run(*overrides: str) -> int:
        return dispatch(["sweep", *SMALL, f"actor.path={actor}", f"hydra.sweep.dir={tmp_path / 's'}", *overrides])

    return run


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "table.json").read_text())["jobs"]


def test_joblib_runs_jobs_side_by_side_with_the_cores_shared_out(sweep, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'rlhf[joblib]'")
    assert sweep("hydra/launcher=joblib", "seed=0,1") == 0
    assert [row["state"] for row in rows(tmp_path / "s")] == ["done", "done"]
    calls = {tuple(map(int, line.split())) for line in (tmp_path / "calls").read_text().splitlines()}
    assert os.getpid() not in {pid for pid, _ in calls}
    assert {threads for _, threads in calls} == {max(1, cores() // 2)}


def test_a_failure_in_another_process_leaves_the_rest_alone(sweep, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'rlhf[joblib]'")
    assert sweep("hydra/launcher=joblib", "reward.fn='watched:fn','watched:short'", "steps=1") == 1
    assert [row["state"] for row in rows(tmp_path / "s")] == ["done", "failed"]
    assert "watched:short" in rows(tmp_path / "s")[1]["error"]


def test_submitit_requeues_what_is_preempted_and_it_goes_on(sweep, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'rlhf[submitit]'")
    (tmp_path / "SIGNAL").write_text("SIGUSR1")
    assert sweep("hydra/launcher=submitit_local", "seed=3") == 0
    assert not (tmp_path / "SIGNAL").exists()
    run = tmp_path / "s" / "0"
    assert read_status(run)["state"] == "done"
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [0, 1, 2, 3]
    said = "".join(path.read_text() for path in (tmp_path / "s" / ".submitit").rglob("*_log.out"))
    assert "resumed at step 2 of 3" in said
    assert len({line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()}) == 2


def test_a_cluster_wants_the_scale_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'rlhf[submitit]'")
    assert dispatch(["sweep", "hydra/launcher=submitit_slurm", "seed=0,1"]) == 2
    assert "scale=full or scale=mini" in capsys.readouterr().err


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if "ray" in name else found(name))
    assert dispatch(["sweep", "scale=mini", "hydra/launcher=ray", "seed=0,1"]) == 2
    assert "pip install 'rlhf[ray]'" in capsys.readouterr().err


def test_how_many_jobs_share_the_cores() -> None:
    from omegaconf import OmegaConf

    def launcher(name: str, **extra):
        return OmegaConf.merge(OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml"), extra)

    assert concurrent(launcher("joblib"), 5) == 2
    assert concurrent(launcher("joblib"), 1) == 1
    assert concurrent(launcher("joblib", n_jobs=-1), 99) == cores()
    assert concurrent(launcher("submitit_local"), 99) == cores()
    assert concurrent(launcher("submitit_local", cpus_per_task=2 * cores()), 99) == 1
    assert concurrent(launcher("submitit_slurm"), 99) == 0


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_launchers_compose(name: str) -> None:
    made = plan("train", ["scale=mini", f"hydra/launcher={name}", "seed=0,1"], multirun=True, config_dir=None)
    assert made.launcher.startswith("hydra_plugins.")
    for line in (CONF / "hydra" / "launcher" / f"{name}.yaml").read_text().splitlines():
        assert "#" in line or line.endswith(":"), line
