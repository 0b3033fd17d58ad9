"""rlhf doctor: what it finds, what it says to do, its exit code."""

import shutil

import pytest
import torch

from rlhf_cli.cli import dispatch
from rlhf_cli.commands import doctor
from rlhf_cli.config.compose import plan


def findings(*overrides: str) -> dict[str, doctor.Finding]:
    config = plan("doctor", ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]
    return {finding.what: finding for finding in doctor.examine(config)}


def test_a_healthy_machine(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["doctor", "scale=mini", f"cache_dir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    for word in ("Python", "device", "disk", "hub", "W&B", "caches", "a training step"):
        assert word in shown, word


def test_what_is_wrong_is_named_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["doctor", "scale=mini", "device=cuda:7", "cache_dir=/proc/cache"]) == 1
    output = capsys.readouterr()
    assert "to fix" in output.err
    assert "Traceback" not in output.err
    found = findings("device=cuda:7", "cache_dir=/proc/cache")
    wrong = {name for name, finding in found.items() if finding.state == "fix"}
    assert wrong == {"device", "disk: cache", "a training step"}


def test_at_full_scale_the_models_must_be_here_or_within_reach() -> None:
    found = findings("scale=full", "device=cpu")
    repo = found["Qwen/Qwen2.5-0.5B-Instruct"]
    assert repo.state == "fix"
    assert repo.fix == "hf download Qwen/Qwen2.5-0.5B-Instruct"


def test_a_full_disk_and_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["torch>=99", "no-such-package"])
    found = findings()
    assert found["disk: outputs"].state == "fix"
    assert found["torch"].fix == 'pip install "torch>=99"'
    assert found["no-such-package"].seen == "not installed"


def test_the_training_step_trains() -> None:
    assert findings()["a training step"].seen.startswith("works")


def test_the_precision_that_is_faster_here_is_named() -> None:
    assert "matrix unit" in findings("device=cpu")
    assert doctor.bfloat16_gain(1) > 0
    for dtype, gain, wanted in (
        (torch.float32, 7.0, "precision=bf16"),
        (torch.float32, 0.5, ""),
        (torch.bfloat16, 7.0, ""),
        (torch.bfloat16, 0.5, "precision=fp32"),
    ):
        found = doctor.matrix_unit(dtype, gain)
        assert found.fix.startswith(wanted)
        assert (found.state == "note") == bool(wanted)
