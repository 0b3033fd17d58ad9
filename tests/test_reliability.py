"""Runs that are killed, locked out, given no room: nothing is lost and nothing is silently wrong."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import numbers, train

from rlhf_cli.cli import dispatch
from rlhf_cli.miniatures.build import miniature
from rlhf_cli.runs import folder
from rlhf_cli.runs.checkpoint import is_whole, newest
from rlhf_cli.runs.status import read_status
from rlhf_cli.tracking.jsonl import read_jsonl

pytestmark = pytest.mark.usefixtures("cache")
SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_killed_anywhere_a_run_ends_with_the_same_numbers(cache: Path, tmp_path: Path) -> None:
    actor = miniature("qwen_instruct", source="generated", cache_dir=cache)
    models = [f"actor.path={actor}", "reward=vader", "gold=none", "data.labeler=vader", "scale=mini"]
    command = [sys.executable, SCRIPTS / "kill_anywhere.py", "--kills=3", "--tears=1", f"--out={tmp_path / 'kills'}"]
    done = subprocess.run([*command, *models], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | " in done.stdout


def test_killed_before_the_first_checkpoint_it_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "whole", "steps=2") == 0
    cut = tmp_path / "cut"
    assert train(cut, "steps=2") == 0
    for checkpoint in (cut / "checkpoints").glob("step_*"):
        (checkpoint / "manifest.json").unlink()
    capsys.readouterr()
    assert dispatch(["train", f"resume={cut}"]) == 0
    assert "no whole checkpoint: it starts anew" in capsys.readouterr().out
    assert numbers(cut) == numbers(tmp_path / "whole")


def test_a_finished_run_is_said_to_be_done_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "steps=1", "algo=grpo", "critic=qwen_base") == 0
    assert "critic=qwen_base is not used" in capsys.readouterr().out
    assert dispatch(["train", f"resume={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path} is done: 1 of 1 steps" in said
    assert "loading" not in said
    assert read_status(tmp_path)["state"] == "done"


def test_lines_after_the_checkpoint_are_dropped_not_doubled(tmp_path: Path) -> None:
    assert train(tmp_path, "steps=2") == 0
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 3, "train/score": 9}\n{"step": 3, "train/sc')
    assert dispatch(["train", f"resume={tmp_path}", "steps=3"]) == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert 9 not in [row.get("train/score") for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert all("response" in row for row in read_jsonl(tmp_path / "samples.jsonl"))


def test_a_flipped_bit_anywhere_is_seen(tmp_path: Path) -> None:
    assert train(tmp_path, "steps=1") == 0
    folder = newest(tmp_path, print)
    assert folder
    assert is_whole(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
        assert not is_whole(folder), file
        file.write_bytes(content)
    assert is_whole(folder)


def test_eval_refuses_a_torn_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "steps=1") == 0
    folder = tmp_path / "run" / "checkpoints" / "step_000001"
    weights = folder / "actor" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert dispatch(["eval", f"checkpoint={folder}", f"hydra.run.dir={tmp_path / 'eval'}"]) == 2
    assert "is torn" in capsys.readouterr().err


def test_one_process_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "steps=1") == 0
    before = read_status(tmp_path)
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert dispatch(["train", f"resume={tmp_path}", "steps=2"]) == 2
    assert "is at work in this run folder" in capsys.readouterr().err
    assert read_status(tmp_path) == before
    assert dispatch(["train", f"resume={tmp_path}", "steps=2"]) == 0


@pytest.mark.parametrize("place", ["/proc/run", "{}/file/run"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert train(Path(place.format(tmp_path))) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert "hydra.run.dir=" in error
    assert len(error.splitlines()) == 1


def test_other_prompts_on_the_disk_are_not_silently_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "steps=1") == 0
    checkpoint = tmp_path / "checkpoints" / "step_000001"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"prompts": "others"}))
    from rlhf_cli.runs.checkpoint import _identity

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = _identity(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert dispatch(["train", f"resume={tmp_path}", "steps=2"]) == 2
    assert "no longer those of the checkpoint" in capsys.readouterr().err


def test_a_signal_before_the_first_step_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "killed_early.py").write_text(
        "import os, signal\n"
        "def __getattr__(name):\n"  # looked up with the config, and again while the run loads, which handles signals
        "    if name == 'fn' and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return lambda prompts, responses: [0.0] * len(responses)\n"
    )
    sys.path.insert(0, str(tmp_path))
    run = tmp_path / "run"
    assert train(run, "reward=python", "reward.fn=killed_early:fn") == 143
    assert read_status(run)["state"] == "interrupted"
    assert not (run / "metrics.jsonl").exists()


def test_a_signal_on_the_heels_of_a_failure_does_not_keep_it_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun does this to a process that another's death has just made fail."""
    (tmp_path / "fails_late.py").write_text("def fn(prompts, responses):\n    raise OSError('gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    note, fell_through = folder._note, []

    def told_to_end(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        note(*args)

    monkeypatch.setattr(folder, "_note", told_to_end)
    before = signal.signal(signal.SIGTERM, lambda *_: fell_through.append(1))
    try:
        assert train(tmp_path / "run", "reward=python", "reward.fn=fails_late:fn", "gold=none") == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_status(tmp_path / "run")["state"] == "failed"
    assert not fell_through, "by itself the signal would have ended the process before it said why"


def steps_kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))


def test_retention_keeps_the_last_every_so_many_and_the_best(tmp_path: Path) -> None:
    keep = ["steps=6", "checkpoint.keep_last=1", "checkpoint.keep_every=4", "val.every=1"]
    best = ["checkpoint.best=val/perplexity", "checkpoint.best_is=lowest"]
    assert train(tmp_path / "whole", *keep, *best) == 0
    scores = {row["step"]: row["val/perplexity"] for row in numbers(tmp_path / "whole") if row["step"]}
    step = min(scores, key=scores.__getitem__)
    assert (tmp_path / "whole" / "checkpoints" / "best").read_text().strip() == f"step_{step:06d}"
    assert steps_kept(tmp_path / "whole") == sorted({4, 6, step})
    # remembered over a resume
    assert train(tmp_path / "cut", *keep[1:], *best, "steps=3") == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=6"]) == 0
    assert steps_kept(tmp_path / "cut") == steps_kept(tmp_path / "whole")


def test_a_resume_says_what_is_no_longer_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy beside the checkpoints, a lost and a damaged record, a config that somebody edited."""
    first = tmp_path / "first"
    assert train(first, "steps=2") == 0
    runs = {name: tmp_path / name for name in ("copied", "lost", "damaged", "edited")}
    for run in runs.values():
        shutil.copytree(first, run)
    shutil.copytree(runs["copied"] / "checkpoints" / "step_000002", runs["copied"] / "checkpoints" / "step_000002_old")
    (runs["lost"] / "samples.jsonl").unlink()
    (runs["damaged"] / "metrics.jsonl").write_text("this is none\n{}\n")
    config = runs["edited"] / "config.yaml"
    config.write_text(config.read_text().replace("max_grad_norm: 1.0", "max_grad_norm: 0.5"))
    capsys.readouterr()
    for name, code, said in (
        ("copied", 0, ["resumed at step 2 of 3", "steps was 2 and is 3: the linear learning rate now ends there"]),
        ("lost", 0, ["samples.jsonl has lost steps up to 2"]),
        ("damaged", 2, ["metrics.jsonl is damaged"]),
        ("edited", 2, ["optim.max_grad_norm: 1.0 -> 0.5"]),
    ):
        assert dispatch(["train", f"resume={runs[name]}", "steps=3"]) == code
        output = "".join(capsys.readouterr())
        assert all(text in output for text in said), output
    assert "hacking/index" not in numbers(runs["lost"])[-1]  # nothing is left to compare with
    assert "hacking/index" in numbers(runs["copied"])[-1]


def test_a_best_metric_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "checkpoint.best=val/scores") == 2
    assert "val/score," in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 100 MB, where this user may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "filling.py").write_text(
        "calls = []\n"
        "def fn(prompts, responses):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 6:\n        fill()\n"
        "    return [len(r) / 50 for r in responses]\n"
        "def fill():\n"
        "    import os, shutil\n"
        f"    free = shutil.disk_usage({str(small_disk)!r}).free\n"
        f"    open({str(small_disk / 'other')!r}, 'wb').write(bytes(free - 3_000_000))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = small_disk / "run"
    wanted = ["reward=python", "reward.fn=filling:fn", "gold=none", "algo=grpo", "algo.group_size=4"]
    assert train(run, *wanted, "steps=5", "checkpoint.keep_last=2") == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert "Traceback" not in error
    assert read_status(run)["state"] == "failed"
    assert "the disk is full" in read_status(run)["error"]
    kept = newest(run, print)
    assert kept
    assert (run / "checkpoints" / "last").read_text().strip() == kept.name
    assert not list((run / "checkpoints").glob(".tmp_*"))
    (small_disk / "other").unlink()
    assert dispatch(["train", f"resume={run}"]) == 0
    assert [row["step"] for row in numbers(run)] == [0, 1, 2, 3, 4, 5]


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    assert train(tmp_path) == 2
    assert "checkpoint.keep_last=1" in capsys.readouterr().err
    assert not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.undo()
    assert train(tmp_path, "seed=1", "steps=1") == 0  # what never began does not claim the folder
