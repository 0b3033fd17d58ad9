"""AdamW with moments in 8 bits: near AdamW, resumed exactly, its room made first, named where it is missing."""

from pathlib import Path

import pytest
import torch
from helpers.bandit import config
from helpers.runs import numbers, train

from rlhf_cli.cli import dispatch
from rlhf_cli.engine.budget import Shape, Work, budget
from rlhf_cli.training import adamw8
from rlhf_cli.training.optimizer import Optimizer, Schedule

MORE = ["algo=grpo", "reward=vader", "gold=none", "optim.name=adamw_8bit"]


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(80, 100)


def moved(optimizer: Optimizer, steps: int) -> torch.Tensor:
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        for parameter in optimizer.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step(1)
    return optimizer.model.weight.detach()


def test_it_moves_nearly_as_adamw_and_keeps_a_byte_a_moment() -> None:
    pytest.importorskip("bitsandbytes")
    before = layer().weight.detach()
    exact = moved(Optimizer(layer(), lr=0.01, schedule=Schedule(1)), 5) - before
    optimizer = Optimizer(layer(), lr=0.01, schedule=Schedule(1), eight_bit=True)
    coarse = moved(optimizer, 5) - before
    assert 0 < (coarse - exact).norm() / exact.norm() < 0.05
    weight, bias = (optimizer.adamw.state[p] for p in optimizer.parameters)
    assert {weight[name].dtype for name in ("state1", "state2")} == {torch.uint8}
    assert bias["state1"].dtype == torch.float32  # too small to gain


def test_a_first_step_without_room_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    optimizer = Optimizer(layer(), lr=0.01, schedule=Schedule(1), eight_bit=True)
    kind, seen = type(optimizer.adamw), []
    make = kind.init_state

    def full(self, group, p, *where):
        seen.append(p.detach().clone())
        if len(seen) == 2:
            raise MemoryError
        make(self, group, p, *where)

    monkeypatch.setattr(kind, "init_state", full)
    again = moved(optimizer, 1)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(again, moved(Optimizer(layer(), lr=0.01, schedule=Schedule(1), eight_bit=True), 1))


@pytest.mark.usefixtures("cache")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run, halved = tmp_path / "run", tmp_path / "halved"
    assert train(run, *MORE) == 0
    assert train(halved, *MORE, "steps=2") == 0
    assert dispatch(["train", f"resume={halved}", "steps=3"]) == 0
    assert numbers(halved) == numbers(run)


def test_where_it_is_missing_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adamw8, "find_spec", lambda name: None)
    assert train(tmp_path / "run", *MORE) == 2
    assert "rlhf[8bit]" in capsys.readouterr().err


def test_it_is_refused_for_split_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *MORE, "shard=true") == 2
    assert "optim.name=adamw" in capsys.readouterr().err


def test_the_budget_knows_it() -> None:
    shape, work = Shape(4, 2, 2, 1, 8, 10), Work(2, 4, 10, 6, checkpointing=False, half=False)
    assert budget(shape, critic="own", judges=[], work=work, moments=2)["optimizers"] == 4 * shape.parameters
    optim = config("algo=grpo", "optim.name=adamw_8bit").optim
    assert (optim.moments(on_gpu=True), optim.moments(on_gpu=False)) == (2, 8)
