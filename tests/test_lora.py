"""LoRA: the sums, their gradients, what is saved and who reads it, whole runs."""

import json
from pathlib import Path

import pytest
import torch
from helpers.qwen import born, prompts, roll
from helpers.runs import numbers, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.engine import gate, lora
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.load import load_actor
from rlhf_cli.engine.read import response_logprobs
from rlhf_cli.runs.nonfinite import not_finite
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.training.optimizer import Optimizer, Schedule

CONFIG = Qwen2Config(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, tie_word_embeddings=True, initializer_range=0.3,
)  # fmt: skip
LORA = ["actor.lora.rank=4", "optim.actor_lr=0.01", "checkpoint.merge=true"]


def adapted(seed: int = 1):
    model = born(CONFIG)
    torch.manual_seed(seed)
    made = lora.attach(model, rank=3, alpha=6.0, targets="all-linear", base="base")
    with torch.no_grad():
        for up in made.up:
            up.normal_(0, 0.1)
    return model


def test_a_gradient_that_is_not_finite_names_the_adapter_and_touches_nothing() -> None:
    model = adapted()
    made, head = lora.adapters_of(model), torch.nn.Parameter(torch.zeros(2))
    optimizer = Optimizer(model, lr=0.1, schedule=Schedule(1), also=[head])
    before = [p.detach().clone() for p in made.parameters()]
    for parameter in [*made.parameters(), head]:
        parameter.grad = torch.zeros_like(parameter)
    made.up[1].grad[0, 0] = float("nan")
    head.grad[1] = float("inf")
    with pytest.raises(NonFinite) as fault:
        optimizer.step(1)
    assert fault.value.evidence["parameters"] == [f"{made.names[1]}.lora_B", "value head"]
    assert all(torch.equal(old, p) for old, p in zip(before, made.parameters(), strict=True))
    assert not_finite(model) == 0
    with torch.no_grad():
        made.down[0][0, 0] = float("nan")
    assert not_finite(model) == 1


def test_sums_by_hand_and_the_model_without_them() -> None:
    model = adapted()
    made = lora.adapters_of(model)
    name = "model.layers.1.mlp.down_proj"
    at = made.names.index(name)
    weight = model.get_submodule(name).weight
    sums = lora.summed_weights(model, dict(model.named_parameters()))
    torch.testing.assert_close(sums[f"{name}.weight"], weight + 2 * made.up[at] @ made.down[at])
    plain = lora.without_adapters(model)
    assert lora.adapters_of(plain) is None
    assert plain.get_submodule(name).weight is weight  # no second copy
    assert sum(p.numel() for p in lora.learned(model)) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("plainly", [False, True])
def test_both_ways_read_what_the_merged_model_gives(plainly: bool) -> None:
    model, merged = adapted(), born(CONFIG)
    merged.load_state_dict(lora.merged_state(model))
    rollout = roll(merged, prompts([3, 7, 5], 8))
    if plainly:
        gate.take_way(model, gate.PLAIN)
    torch.testing.assert_close(
        response_logprobs(model, rollout, temperature=0.9)[0], response_logprobs(merged, rollout, temperature=0.9)[0],
        atol=1e-5, rtol=0,
    )  # fmt: skip
    drawn = roll(model, prompts([3, 7, 5], 8))
    assert torch.equal(drawn.responses, rollout.responses)


def test_gradients_are_those_of_the_plain_way() -> None:
    found = []
    for plainly in (False, True):
        model = adapted()
        if plainly:
            gate.take_way(model, gate.PLAIN)
        rollout = roll(adapted(), prompts([3, 7, 5], 8))
        response_logprobs(model, rollout, temperature=0.9)[0].sum().backward()
        assert all(p.grad is None for p in model.parameters())
        found.append([p.grad for p in lora.learned(model)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="it has down_proj, gate_proj"):
        lora.attach(born(CONFIG), rank=2, alpha=2.0, targets=["query"], base="")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
@pytest.mark.usefixtures("cache")
def test_a_run_its_checkpoint_its_resume_and_who_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, halved = tmp_path / "run", tmp_path / "halved"
    more = [*LORA, "reward=vader", "gold=none"]
    assert train(run, *more) == 0
    rows = read_jsonl(run / "metrics.jsonl")
    assert rows[0]["val/kl"] == 0.0
    assert next(row for row in rows if row["step"] == 1)["train/kl"] == 0.0
    assert rows[-1]["train/kl"] != 0.0
    assert train(halved, *more, "steps=2") == 0
    assert dispatch(["train", f"resume={halved}", "steps=3"]) == 0
    assert numbers(halved) == numbers(run)
    saved = run / "checkpoints" / "step_000003"
    assert not (saved / "actor" / "model.safetensors").exists()
    config = json.loads((saved / "actor" / "adapter_config.json").read_text())
    ours = load_actor(str(saved / "actor"), device=torch.device("cpu"))
    merged = AutoModelForCausalLM.from_pretrained(saved / "actor_merged", dtype=torch.float32)
    ids = torch.arange(12)[None]
    wanted = merged(ids).logits
    ours.load_state_dict(lora.merged_state(ours))
    torch.testing.assert_close(ours(ids).logits, wanted, atol=1e-4, rtol=0)
    peft = pytest.importorskip("peft")
    plain = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    read = peft.PeftModel.from_pretrained(plain, saved / "actor")
    torch.testing.assert_close(read(ids).logits, wanted, atol=1e-4, rtol=0)
    assert len(load_file(saved / "actor" / "adapter_model.safetensors")) == 2 * len(lora.adapters_of(ours).names)
    capsys.readouterr()
    assert dispatch(["eval", str(run), f"hydra.run.dir={tmp_path}/eval", "hydra.output_subdir=null"]) == 0
    told = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert told["metrics"]["val/kl"] == pytest.approx(rows[-1]["val/kl"], abs=1e-6)


@pytest.mark.parametrize("more", [["algo=trpo"], ["algo=grpo_iterative", "algo.retrain_epochs=0"], ["shard=true"]])
def test_what_does_not_go_with_adapters_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *LORA, "reward=vader", *more) == 2
    assert "adapters do not go with" in capsys.readouterr().err
