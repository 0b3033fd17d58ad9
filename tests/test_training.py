"""Whole tiny trainings through the command line: run folder, resume, eval, sweeps, failures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import wbread
from helpers.runs import SMALL, numbers, train

from rlhf_cli.cli import dispatch
from rlhf_cli.engine import read as forward
from rlhf_cli.runs.status import read_status
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.training import update

pytestmark = pytest.mark.usefixtures("cache")


def test_a_run_leaves_what_the_contract_says(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    assert read_status(tmp_path)["state"] == "done"
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for key in ("score", "reward", "kl", "kl_k3", "entropy", "approx_kl", "clipfrac", "ratio_max", "value_loss",
                "grad_norm", "response_length", "eos_rate", "repetition", "beta", "lr"):  # fmt: skip
        assert f"train/{key}" in rows[1], key
    assert {"val/score", "val/kl", "val/perplexity", "val/distinct_1", "val/score/neutral", "val/gold_score"} <= rows[
        0
    ].keys()
    assert abs(rows[1]["train/kl"]) < 1e-4  # the first rollouts come from the reference itself
    sample = read_jsonl(tmp_path / "samples.jsonl")[0]
    assert {"step", "prompt", "prefix", "response", "class", "score", "parts"} == sample.keys()
    assert "<|im_end|>" not in sample["prompt"] + sample["response"]
    last = tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "last").read_text().strip()
    assert last.name == "step_000003"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    actor, tokenizer = (kind.from_pretrained(last / "actor") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("This movie is", return_tensors="pt")
    assert actor.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]
    assert actor.dtype == torch.float32
    assert train(tmp_path) == 2  # the folder holds a run


def test_the_wandb_files_of_a_run_hold_its_metrics_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert train(tmp_path, "tracking=offline") == 0
    wandb.teardown()  # finish() returns before the file is complete
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    stored = wbread.read(file)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["_step"] for row in stored["history"]] == [line.pop("step") for line in lines] == [0, 1, 2, 3]
    assert [{k: v for k, v in row.items() if k[0] != "_" and k != "samples"} for row in stored["history"]] == lines
    assert stored["config"]["algo"]["lambda"] == 0.95
    tables = [json.loads(t.read_text()) for t in tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")]
    rows = sorted(row for table in tables for row in table["data"])
    samples = read_jsonl(tmp_path / "samples.jsonl")
    assert rows == sorted([s["step"], s["prompt"], s["response"], s["score"], s["class"]] for s in samples)


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_resumed_equals_uninterrupted(tmp_path: Path, algo: str) -> None:
    group = ["algo.group_size=4"] if algo == "grpo" else []
    assert train(tmp_path / "whole", f"algo={algo}", *group) == 0
    assert train(tmp_path / "cut", f"algo={algo}", *group, "steps=2") == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=3"]) == 0
    whole, cut = numbers(tmp_path / "whole"), numbers(tmp_path / "cut")
    assert whole[:3] == cut[:3]
    keys = whole[3].keys()
    assert {k: cut[3][k] for k in keys} == whole[3]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    torn = tmp_path / "checkpoints" / "step_000003" / "trainer.pt"
    torn.write_bytes(torn.read_bytes()[:-10])
    expected = numbers(tmp_path)
    assert dispatch(["train", f"resume={tmp_path}"]) == 0
    assert numbers(tmp_path) == expected


def test_resume_refuses_another_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    assert dispatch(["train", f"resume={tmp_path}", "algo.beta=0.5"]) == 2
    assert "algo.beta: 0.03 -> 0.5" in capsys.readouterr().err


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    assert train(tmp_path / "a") == 0
    assert train(tmp_path / "b", "optim.micro_batch_size=3", "rollout.micro_batch_size=5") == 0
    for one, other in zip(numbers(tmp_path / "a"), numbers(tmp_path / "b"), strict=True):
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=2e-3, abs=2e-3), key


def test_the_critics_kept_forward_pass_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, kept = ["algo.epochs=2", "algo.minibatches=1", "optim.critic_lr=1e-3"], []
    value_term = update.value_term
    monkeypatch.setattr(
        update, "value_term", lambda *given: kept.append(given[2] is given[1].live_values) or value_term(*given)
    )
    assert train(tmp_path / "kept", *one) == 0
    assert sum(kept) == 3  # the first of each step's two epochs
    monkeypatch.setattr(forward, "KEEP_BYTES", {})
    assert train(tmp_path / "twice", *one) == 0
    assert sum(kept) == 3
    for one_row, other in zip(numbers(tmp_path / "kept"), numbers(tmp_path / "twice"), strict=True):
        for key, value in one_row.items():
            assert other[key] == pytest.approx(value, rel=2e-3, abs=2e-3), key


def test_with_lr_0_the_ratio_is_exactly_1(tmp_path: Path) -> None:
    assert train(tmp_path, "optim.actor_lr=0", "optim.micro_batch_size=8", "algo.minibatches=1") == 0
    for row in numbers(tmp_path)[1:]:
        assert row["train/ratio_max"] == 1
        assert row["train/clipfrac"] == 0


def test_the_first_ratio_is_exactly_1_in_any_layout(tmp_path: Path) -> None:
    one = ["algo.epochs=1", "algo.minibatches=1", "rollout.batch_size=32", "rollout.max_response_length=16"]
    for size in (3, 32):
        assert train(tmp_path / str(size), *one, f"optim.micro_batch_size={size}") == 0
        assert [row["train/ratio_max"] for row in numbers(tmp_path / str(size))[1:]] == [1, 1, 1]


def test_eval_judges_a_checkpoint_and_the_untrained_actor(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run) == 0
    assert dispatch(["eval", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'trained'}"]) == 0
    result = json.loads((tmp_path / "trained" / "eval.json").read_text())
    first, last = numbers(run)[0], numbers(run)[-1]
    for name in ("val/score", "val/kl", "hacking/index"):
        assert result["metrics"][name] == pytest.approx(last[name], abs=1e-5)
    assert result["untrained"]["val/score"] == pytest.approx(first["val/score"], abs=1e-5)
    assert "hacking/index" not in result["untrained"]
    untrained = [o for o in SMALL if not o.startswith("checkpoint")]
    assert dispatch(["eval", *untrained, f"hydra.run.dir={tmp_path / 'untrained'}"]) == 0
    alone = json.loads((tmp_path / "untrained" / "eval.json").read_text())
    assert alone["metrics"]["val/kl"] == pytest.approx(0)
    assert alone["untrained"] is None
    assert dispatch(["sample", "This movie is [bold]", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 's'}"]) == 0


def test_a_failing_job_does_not_stop_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "flaky_reward.py"
    module.write_text(
        "def good(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
        "def bad(prompts, responses):\n    raise RuntimeError('no reward today')\n"
    )
    sys.path.insert(0, str(tmp_path))
    sweep = tmp_path / "sweep"
    code = dispatch(
        ["train", "--multirun", *SMALL, "reward=python", "steps=1", f"hydra.sweep.dir={sweep}",
         "reward.fn='flaky_reward:bad','flaky_reward:good'"]
    )  # fmt: skip
    assert code == 1
    assert [read_status(sweep / str(i))["state"] for i in range(2)] == ["failed", "done"]
    assert "no reward today" in read_status(sweep / "0")["error"]
    assert "failed" in capsys.readouterr().out
    assert not [p for p in sweep.rglob("*") if "=" in p.name]


def test_the_lexicon_as_a_reward_is_its_own_gold(tmp_path: Path) -> None:
    assert train(tmp_path, "reward=vader", "steps=1") == 0
    for row in numbers(tmp_path):
        assert row["val/gold_score"] == pytest.approx(row["val/score"])
    assert train(tmp_path / "other", "reward=vader", "reward.target=neutral", "steps=1") == 2
    assert train(tmp_path / "none", "gold=none", "steps=1") == 0
    assert "val/gold_score" not in numbers(tmp_path / "none")[0]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR2", 143), ("SIGHUP", 129)])
def test_a_signal_saves_and_tells_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    module = tmp_path / f"stopping_by_{name}.py"
    module.write_text(
        "import os, signal\ncalls = []\n"
        "def fn(prompts, responses):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 3:\n        os.kill(os.getpid(), signal.{name})\n"
        "    return [0.5] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    assert train(run, "reward=python", f"reward.fn={module.stem}:fn", "steps=9") == code
    assert read_status(run)["state"] == "interrupted"
    assert (run / "checkpoints" / "last").exists()


def test_the_hub_out_of_reach_is_one_message(tmp_path: Path) -> None:
    code = ["-m", "rlhf_cli", "train", "scale=full", "device=cpu", "tracking=none", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "hf download" in done.stderr
    assert "scale=mini" in done.stderr
