"""Each main command once, on tiny settings: what `make test-oldest` and `make test-newest` run on other versions of the
libraries. Between them they touch where releases have broken us: models, caches, tokenizers, sweeps, W&B's files."""

import json
import math
import shutil
from pathlib import Path

import pytest

from rlhf_cli.cli import dispatch
from rlhf_cli.runs.status import read_status
from rlhf_cli.tracking.jsonl import read_jsonl

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("cache")]

MODELS = [
    "scale=mini", "device=cpu", "tracking=none", "data.train=30", "data.test=12", "data.labeler=vader",
    "val.prompts=6", "rollout.batch_size=8", "rollout.max_response_length=8", "optim.micro_batch_size=4",
]  # fmt: skip
TINY = [*MODELS, "steps=2", "val.every=2", "checkpoint.every=1"]


def is_done(folder: Path, steps: int) -> None:
    """A finished run whose every step has finite numbers."""
    assert read_status(folder)["state"] == "done"
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(steps + 1))
    for row in rows[1:]:
        assert math.isfinite(row["train/score"])
        assert math.isfinite(row["train/grad_norm"])
    assert abs(rows[1]["train/kl"]) < 1e-4  # sampled and read by two code paths, from one policy


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "ppo"
    assert dispatch(["train", *TINY, "tracking=offline", f"hydra.run.dir={folder}"]) == 0
    return folder


def test_ppo_trains_and_wandb_keeps_its_curves(run: Path) -> None:
    is_done(run, steps=2)
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert dispatch(["train", f"resume={copy}", "steps=3", "tracking=none"]) == 0
    is_done(copy, steps=3)


def test_a_checkpoint_is_judged(run: Path, tmp_path: Path) -> None:
    assert dispatch(["eval", f"checkpoint={run}", "tracking=none", f"hydra.run.dir={tmp_path / 'eval'}"]) == 0
    judged = json.loads((tmp_path / "eval" / "eval.json").read_text())["metrics"]
    last = read_jsonl(run / "metrics.jsonl")[-1]
    assert judged["val/score"] == pytest.approx(last["val/score"], abs=1e-5)
    assert judged["val/kl"] == pytest.approx(last["val/kl"], abs=1e-5)


def test_a_checkpoint_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["sample", "This movie is", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'sample'}"]) == 0
    assert "This movie is" in capsys.readouterr().out


def test_grpo_trains(tmp_path: Path) -> None:
    assert dispatch(["train", *TINY, "algo=grpo", "algo.group_size=4", f"hydra.run.dir={tmp_path / 'grpo'}"]) == 0
    is_done(tmp_path / "grpo", steps=2)


def test_a_sweep_runs_its_jobs_and_the_report_shows_them(tmp_path: Path) -> None:
    sweep, page = tmp_path / "sweep", tmp_path / "page"
    assert dispatch(["sweep", *TINY, "algo.beta=0.01,0.1", f"hydra.sweep.dir={sweep}"]) == 0
    jobs = [sweep / "0", sweep / "1"]
    for job in jobs:
        is_done(job, steps=2)
    runs = ",".join(map(str, jobs))
    assert dispatch(["report", f"runs=[{runs}]", f"out={page}", f"hydra.run.dir={tmp_path / 'report'}"]) == 0
    assert "algo.beta" in (page / "index.html").read_text()
