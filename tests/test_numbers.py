"""Numbers that are not finite, memory that runs out, epochs that go too far, runs that learn nothing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.bandit import Bandit
from helpers.runs import numbers, train
from safetensors.torch import load_file

from rlhf_cli.build import experiment
from rlhf_cli.config.errors import RunFailed
from rlhf_cli.engine import memory
from rlhf_cli.engine.device import Compute, bf16_gain
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.memory import Memory, out_of_memory
from rlhf_cli.rewards import classifier
from rlhf_cli.runs import warnings
from rlhf_cli.runs.status import read_status
from rlhf_cli.training import experience, micro_batches, optimizer, rollouts, update

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reward that is NaN for the third row, the third time it is asked."""
    (tmp_path / "nan_once.py").write_text(
        "calls = []\n"
        "def fn(prompts, responses):\n"
        "    calls.append(1)\n"
        "    scores = [len(r) / 50 for r in responses]\n"
        "    if len(calls) == 3:\n        scores[2] = float('nan')\n"
        "    return scores\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("nan_once", None)
    return "reward.fn=nan_once:fn"


def test_a_reward_that_is_no_number_stops_the_run(
    tmp_path: Path, reward: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "reward=python", reward, "gold=none") == 1
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    for part in ("step 2", "row 2", "texts.jsonl", "on_nonfinite=skip"):
        assert part in output.err, part
    assert "not finite" in read_status(run)["error"]
    assert [row["step"] for row in numbers(run)] == [0, 1]
    folder = run / "nonfinite_step_000002"
    reason = json.loads((folder / "reason.json").read_text())
    assert reason["rows"] == [2]
    assert reason["weights that are not finite"] == {"actor": 0, "critic": 0}
    assert reason["first modules that are not finite"] == {}
    texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert [row["score"] is None for row in texts] == [i == 2 for i in range(8)]
    assert load_file(folder / "batch.safetensors")["scores"].isnan().tolist() == [i == 2 for i in range(8)]
    assert (folder / "config.yaml").exists()
    assert train(run, "reward=python", reward, "gold=none", "resume=auto", "on_nonfinite=skip") == 0


def test_skip_leaves_the_step_out_and_goes_on(tmp_path: Path, reward: str) -> None:
    assert train(tmp_path / "run", "reward=python", reward, "gold=none", "on_nonfinite=skip") == 0
    rows = numbers(tmp_path / "run")
    assert [row.get("train/nonfinite") for row in rows] == [None, None, 1.0, None]
    assert "train/score" in rows[3]


def weights(bandit: Bandit) -> list[torch.Tensor]:
    return [p.detach().clone() for model in (bandit.actor, bandit.critic.model) for p in model.parameters()]


@pytest.mark.parametrize("what", ["actor", "critic"])
def test_a_gradient_that_is_no_number_touches_no_weight(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bandit = Bandit("algo=ppo")
    before = weights(bandit)
    model = bandit.actor if what == "actor" else bandit.critic.model
    name, parameter = next(iter(model.named_parameters()))
    summed = optimizer.distributed.sum_gradients

    def infinite(parameters) -> None:
        summed(parameters)
        if parameter.grad is not None:
            parameter.grad.fill_(float("inf"))

    monkeypatch.setattr(optimizer.distributed, "sum_gradients", infinite)
    with pytest.raises(NonFinite) as caught:
        bandit.step(1)
    assert caught.value.evidence["parameters"] == [name]
    count = len(list(bandit.actor.parameters()))
    own = slice(0, count) if what == "actor" else slice(count, None)
    assert all(torch.equal(a, b) for a, b in zip(before[own], weights(bandit)[own], strict=True))


def test_a_loss_that_is_no_number_touches_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    bandit = Bandit("algo=ppo")
    before = weights(bandit)
    actor_loss = type(bandit.algorithm).actor_loss

    def none(*args, **options):
        loss, metrics = actor_loss(*args, **options)
        return loss * float("nan"), metrics

    monkeypatch.setattr(type(bandit.algorithm), "actor_loss", none)
    with pytest.raises(NonFinite, match="actor's loss"):
        bandit.step(1)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(bandit), strict=True))


@pytest.mark.parametrize(("what", "column"), [("reference", "ref_logprobs"), ("critic", "values")])
def test_a_dump_has_the_numbers_that_its_advice_points_to(what: str, column: str) -> None:
    bandit = Bandit("algo=ppo")
    model = bandit.reference if what == "reference" else bandit.critic.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFinite) as caught:
        bandit.step(1)
    assert not torch.isfinite(getattr(caught.value.evidence["batch"], column)).all()
    assert len(caught.value.evidence["rollouts"]) == 64


def scarce(function, limit: int):
    """`function(…, rollout)` for a device on which more than `limit` rows do not fit."""

    def wrapped(model, rollout, *args, **options):
        if len(rollout) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(model, rollout, *args, **options)

    return wrapped


def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ["optim.micro_batch_size=4", "rollout.micro_batch_size=8"]
    assert train(tmp_path / "a", *layout) == 0
    for module in (experience, micro_batches):
        monkeypatch.setattr(module, "read", scarce(module.read, 2))
    monkeypatch.setattr(rollouts, "sample", scarce(rollouts.sample, 4))
    capsys.readouterr()
    assert train(tmp_path / "b", *layout) == 0
    said = capsys.readouterr().out
    assert said.count("out of memory in learning: 4 → 2 rows at a time; the result stays the same") == 1
    assert said.count("out of memory in reading") == 1
    for one, other in zip(numbers(tmp_path / "a"), numbers(tmp_path / "b"), strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=2e-3)


def test_out_of_memory_in_the_middle_of_a_minibatch_starts_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = Bandit("algo=ppo"), Bandit("algo=ppo")
    expected = whole.step(1)
    value_term, calls = update.value_term, []

    def once(*args):
        loss = value_term(*args)
        calls.append(1)
        if len(calls) == 2:  # there are gradients already
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return loss

    monkeypatch.setattr(update, "value_term", once)
    assert cut.step(1) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for a, b in zip(weights(whole), weights(cut), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_row_that_does_not_fit_is_one_message() -> None:
    def never(rows: int) -> None:
        raise torch.OutOfMemoryError

    tight = Memory(notify=lambda _: None)
    with pytest.raises(RunFailed, match="with one row at a time"):
        tight.fit("learning", 8, never)
    assert not out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(ZeroDivisionError):
        tight.fit("learning", 8, lambda rows: rows // 0)


def test_where_adamw_finds_no_room_what_can_be_made_again_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step is tried twice: no weight has changed when its two numbers a weight are not there."""
    free, tight = Bandit("algo=grpo"), Bandit("algo=grpo")
    dropped: list[str] = []
    monkeypatch.setattr(memory, "_spare", [lambda: dropped.append("a cache")])
    adamw, failures = torch.optim.AdamW.step, ["once"]

    def step(self: torch.optim.AdamW) -> None:
        if (failures and dropped == []) or failures == ["always"]:
            self.state[self.param_groups[0]["params"][0]]["step"] = torch.tensor(0.0)  # the half that was made
            raise torch.OutOfMemoryError("CUDA out of memory")
        adamw(self)

    expected = free.step(1)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert tight.step(1) == expected
    assert dropped == ["a cache"]
    failures[:] = ["always"]
    with pytest.raises(RunFailed, match="first optimizer step: AdamW keeps two numbers a weight"):
        Bandit("algo=grpo").step(1)


def test_a_judge_that_does_not_fit_reads_fewer_texts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def crowded(model: object, tokenizer: object, rows: list[list[int]]) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([[float(len(row)), 0.0] for row in rows])

    monkeypatch.setattr(classifier, "padded_outputs", crowded)
    monkeypatch.setattr(classifier, "_memory", memory.Memory(notify=lambda _: None))
    judge = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(num_labels=2)), tokenizer=None, batch_size=8)
    found = classifier.outputs(judge, [[i] * (1 + i % 3) for i in range(8)])
    assert found[:, 0].tolist() == [1.0 + i % 3 for i in range(8)]
    assert sizes[0] > 2
    assert max(sizes[-4:]) <= 2


def test_a_slow_bfloat16_is_measured_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bf16_gain(rounding=True) > 0
    lines: list[str] = []
    for factor in (0.5, 40.0):
        monkeypatch.setattr(experiment, "bf16_gain", lambda rounding, factor=factor: 1 / factor)
        experiment.warn_of_bf16(Compute(torch.device("cpu"), torch.bfloat16), lines.append)
    experiment.warn_of_bf16(Compute(torch.device("cpu"), torch.float32), lines.append)
    assert lines == ["precision=bf16: products take 40.0 times as long as in fp32 on this CPU: try precision=fp32"]


def test_target_kl_ends_the_epochs_early() -> None:
    free, held = Bandit("algo=ppo", "algo.epochs=8"), Bandit("algo=ppo", "algo.epochs=8", "algo.target_kl=0.01")
    far = free.step(1)
    near = held.step(1)
    assert "train/updates" not in far
    assert 1 <= near["train/updates"] < 16
    assert near["train/approx_kl"] < far["train/approx_kl"]


def test_a_sign_of_decay_is_said_once_when_it_has_lasted() -> None:
    watch, said = warnings.Warnings(), []
    for step in range(100):
        dead = step < 50
        metrics = {"train/explained_variance": -0.1 if dead else 0.4, "train/eos_rate": 0.0, "train/score": 0.5}
        said += watch.after(metrics | {"train/zero_variance_groups": 1.0 if step % 10 else 0.9})
    assert len(said) == 2
    assert "critic" in said[0] + said[1]
    assert "no response ends" in said[0] + said[1]
    assert len(watch.after({"train/explained_variance": -1.0})) == 0
