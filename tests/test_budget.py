"""The byte budget against models that are made, and what doctor says of it."""

from pathlib import Path

import pytest
import torch
from helpers.bandit import config
from helpers.runs import numbers, train
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.build import rows
from rlhf_cli.commands.doctor_memory import memory, shape_of
from rlhf_cli.config.errors import UserError
from rlhf_cli.engine import lora
from rlhf_cli.engine.budget import SHAPES, Shape, Work, budget, rows_within
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.memory import free_bytes

CPU = Compute(torch.device("cpu"), torch.float32)
WORK = Work(rows=2, decoded=4, prompt=10, response=6, checkpointing=False, half=False)


def test_a_shape_counts_what_a_model_has() -> None:
    made = Qwen2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, tie_word_embeddings=True,
    )  # fmt: skip
    model, shape = Qwen2ForCausalLM(made), Shape.of(made)
    biases = 3 * (32 + 2 * 16)
    assert shape.parameters + biases == sum(p.numel() for p in model.parameters())
    adapters = lora.attach(model, rank=3, alpha=3.0, targets="all-linear", base="")
    assert shape.adapters(3) == sum(p.numel() for p in adapters.parameters())


def test_published_sizes() -> None:
    assert SHAPES["Qwen/Qwen2.5-0.5B"].parameters == pytest.approx(494e6, rel=0.001)
    assert SHAPES["HuggingFaceTB/SmolLM2-135M"].parameters == 134_515_008


def test_a_budget_by_hand() -> None:
    shape = Shape(4, 2, 2, 1, 8, 10)
    found = budget(shape, critic="none", judges=[100], work=WORK)
    p = shape.parameters
    assert found["actor's weights"] == 4 * p
    assert found["optimizers"] == 8 * p
    assert found["judges"] == 400
    assert found["activations"] == 2 * 16 * 2 * 4 * (2 * 8 + 10 * 4)
    assert found["KV cache"] == 4 * 2 * 4 * 16 * 2 * 2
    own = budget(shape, critic="own", judges=[], work=WORK)
    assert own["optimizers"] == 2 * found["optimizers"]
    assert own["gradients"] == found["gradients"]  # one after the other
    adapted = budget(shape, critic="none", judges=[], work=WORK, rank=1)
    assert adapted["optimizers"] == 8 * shape.adapters(1)
    assert "reference" not in adapted


def test_doctor_says_what_a_run_needs() -> None:
    small = memory(config("algo=grpo"), CPU)
    assert small.state == "ok"
    assert "GB" in small.seen
    typed = config("actor.path=null")
    full = typed.model_copy(
        update={"scale": "full", "actor": typed.actor.model_copy(update={"hub": "Qwen/Qwen2.5-3B"})}
    )
    assert shape_of(full) == SHAPES["Qwen/Qwen2.5-3B"]
    assert "critic=shared" in memory(full, Compute(torch.device("cpu"), torch.float32)).fix


def test_rows_that_fit_beside_what_is_still_to_come() -> None:
    shape, work = Shape(4, 2, 2, 1, 8, 10), Work(8, 4, 10, 6, checkpointing=False, half=False)
    parts = budget(shape, critic="none", judges=[], work=work)
    coming = parts["optimizers"] + parts["gradients"] + parts["logits"] + parts["KV cache"]
    row = 16 * 2 * 4 * (2 * 8 + 10 * 4)
    for count in (1, 3, 8):
        assert rows_within(int((coming + count * row) / 0.9) + 1, shape, critic="none", work=work) == count
    assert rows_within(0, shape, critic="none", work=work) == 1
    assert rows_within(10**9, shape, critic="none", work=work) == 8
    assert rows_within(int((coming + 3 * row) / 0.9) + 1, shape, critic="own", work=work) == 2  # a second optimizer


@pytest.mark.usefixtures("cache")
def test_auto_takes_what_memory_holds_and_a_resumed_run_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = "optim.micro_batch_size=auto"
    monkeypatch.setattr(rows, "rows_within", lambda *_, work, **__: min(3, work.rows))
    assert train(tmp_path / "whole", auto) == 0
    assert "optim.micro_batch_size=auto: 3 rows a pass" in capsys.readouterr().out
    assert train(tmp_path / "parts", auto, "steps=2") == 0
    monkeypatch.setattr(rows, "rows_within", lambda *_, **__: 1)
    assert train(tmp_path / "parts", auto, "resume=auto") == 0
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    with pytest.raises(UserError, match="a number"):
        config(auto, "shard=true")


def test_free_memory_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
