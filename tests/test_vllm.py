"""vLLM as a rollout engine, against a stub of its interface; against itself where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import fake_vllm
from helpers.bandit import config, tiny
from helpers.pretend_gpu import GPU, Watch, pretend
from helpers.runs import numbers, train
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.config.errors import RunFailed, UserError
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.load import load_actor
from rlhf_cli.engine.lora import adapters_of, attach, summed_weights
from rlhf_cli.engine.read import response_logprobs
from rlhf_cli.engine.vllm_engine import VllmEngine, check_vllm, checkpoint_weights, request_seeds

CPU = Compute(torch.device("cpu"), torch.float32)
HOW = {"eos_ids": (0, 7), "pad_id": 0, "max_length": 5, "temperature": 0.7, "seed": 3}
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def asked(count: int = 6) -> PromptSet:
    return PromptSet([""] * count, ["neutral"] * count, [[3, 4, 5][: 1 + i % 3] for i in range(count)], 0)


def engine(where: Compute = CPU) -> VllmEngine:
    return VllmEngine(where, context=8, memory=0.3, notify=lambda _: None)


def heads_of_32(*, tied: bool = True) -> Qwen2ForCausalLM:
    """The smallest that vLLM's own attention takes."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=12, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, tie_word_embeddings=tied, initializer_range=0.3,
        )
    ).eval()  # fmt: skip


def check_samples(made: VllmEngine) -> None:
    """The numbers of a rollout are the model's own, and hang on (seed, step, rollout index)."""
    model, prompts = heads_of_32(), asked().prompts(list(range(6)))
    first = made.sample(model, prompts, step=1, **HOW)
    assert 1 <= int(first.lengths.min()) <= int(first.lengths.max()) <= 5
    ours = response_logprobs(model, first, temperature=0.7)[0]
    torch.testing.assert_close(first.logprobs * first.mask, ours, atol=1e-4, rtol=0)
    ends = [row[n - 1] in (0, 7) for row, n in zip(first.responses.tolist(), first.lengths.tolist(), strict=True)]
    assert first.ended.tolist() == ends
    assert all(
        not {0, 7} & {*row[: n - 1]} for row, n in zip(first.responses.tolist(), first.lengths.tolist(), strict=True)
    )
    again = made.sample(model, prompts.select(torch.tensor([4, 1])), step=1, **HOW)
    for row, of in ((0, 4), (1, 1)):
        n = int(first.lengths[of])
        assert again.responses[row, :n].tolist() == first.responses[of, :n].tolist()
    assert made.sample(model, prompts, step=2, **HOW).responses.tolist() != first.responses.tolist()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    later = made.sample(model, prompts, step=3, **HOW)
    torch.testing.assert_close(later.logprobs, response_logprobs(model, later, temperature=0.7)[0], atol=1e-4, rtol=0)


def test_samples_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    check_samples(engine())


@needs_vllm
def test_samples_of_vllm_itself_are_the_models_own() -> None:
    check_samples(engine())


@pytest.mark.parametrize("tied", [True, False])
def test_it_gets_every_weight_under_its_name_with_the_adapters_added(tied: bool) -> None:
    model = heads_of_32(tied=tied)
    attach(model, rank=2, alpha=4.0, targets="all-linear", base="x")
    with torch.no_grad():
        for up in adapters_of(model).up:
            up.normal_()
    given = dict(checkpoint_weights(model))
    assert given.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = summed_weights(model, dict(model.named_parameters()))[name]
    assert torch.equal(given[name], wanted)
    assert not torch.equal(given[name], model.get_parameter(name))


def test_seeds_hang_on_seed_step_and_rollout() -> None:
    seeds = {int(s) for seed in (0, 1) for step in (1, 2) for s in request_seeds(seed, step, torch.arange(50))}
    assert len(seeds) == 200
    assert request_seeds(0, 1, torch.tensor([7]))[0] == request_seeds(0, 1, torch.arange(50))[7]


def test_on_a_gpu_it_sleeps_between_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is that of vLLM's documentation: weights, reload, cache."""
    fake = fake_vllm.install(monkeypatch)
    with pretend(monkeypatch) as watch:
        assert isinstance(watch, Watch)
        made, model = engine(Compute(GPU, torch.float32)), tiny().to(GPU)
        monkeypatch.setattr(fake, "_one", torch.no_grad()(lambda *_: drawn()))
        made._compared = True  # the stub's model is on the CPU
        monkeypatch.setattr(fake, "collective_rpc", lambda self, method, kwargs: self.calls.append(method))
        for step in (1, 2):
            found = made.sample(model, asked().prompts([0, 1]).to(GPU), step=step, **HOW)
            assert found.responses.is_cuda
    (llm,) = fake.made
    assert llm.given["sleeps"]
    once = ["reload_weights", "wake kv_cache", "reset_prefix_cache", "generate", "sleep 2"]
    assert llm.calls == [*once, "wake weights", *once]


def drawn():
    from types import SimpleNamespace as Made

    return Made(outputs=[Made(token_ids=(3, 7), logprobs=[{3: Made(logprob=-1.0)}, {7: Made(logprob=-2.0)}])])


def test_wrong_log_probs_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_vllm.install(monkeypatch), "off", 0.5)
    with pytest.raises(RunFailed, match=r"0\.5 nats a token.*rollout\.engine=native"):
        engine().sample(tiny(), asked().prompts([0, 1]), step=1, **HOW)


def test_a_prompt_longer_than_it_was_started_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    made = engine()
    made.sample(tiny(), asked().prompts([0]), step=1, **HOW)
    long = PromptSet([""], ["neutral"], [[3] * 9], 0)
    with pytest.raises(RunFailed, match=r"started for 8 tokens.*has 14"):
        made.sample(tiny(), long.prompts([0]), step=1, **HOW)


def test_without_vllm_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr("rlhf_cli.engine.vllm_engine.find_spec", lambda _: None)
    assert train(tmp_path / "run", "rollout.engine=vllm") == 2
    said = capsys.readouterr().err
    assert 'pip install "rlhf[vllm]"' in said
    assert "rollout.engine=native" in said


def test_another_gpu_than_the_first_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=2"):
        check_vllm(Compute(torch.device("cuda:2"), torch.float32))


@pytest.mark.parametrize("also", ["algo.old_logprobs=rollout", "shard=true", "rollout.temperature=0.005"])
def test_what_does_not_go_with_it_is_refused(also: str) -> None:
    with pytest.raises(UserError, match=r"rollout\.engine=vllm"):
        config("rollout.engine=vllm", also)


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_run_samples_with_it_every_step(
    algo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, capsys
) -> None:
    fake = fake_vllm.install(monkeypatch)
    monkeypatch.setattr(fake, "off", 0.005)
    words = ["rollout.engine=vllm", f"algo={algo}", "device=cpu", "algo.epochs=1", "algo.minibatches=1"]
    words += ["algo.group_size=4"] if algo == "grpo" else []
    assert train(tmp_path / "run", *words, "optim.warmup_steps=0", "optim.actor_lr=1e-3") == 0
    rows, (llm,) = numbers(tmp_path / "run"), fake.made
    # validations at steps 0, 2 and 3, a rollout at each of three steps: the weights come anew before each
    assert llm.calls == ["reload_weights", "reset_prefix_cache", "generate"] * 6
    assert [row["train/logprob_mismatch"] for row in rows[1:]] == pytest.approx([0.005] * 3, abs=1e-4)
    assert [row["train/ratio_max"] for row in rows[1:]] == pytest.approx([1.0] * 3, abs=1e-5)  # of our own log-probs
    assert rows[0]["val/kl"] == pytest.approx(0, abs=1e-5)
    learned = load_actor(str(tmp_path / "run" / "checkpoints" / "step_000003" / "actor"), device=CPU.device)
    start = load_actor(str(tmp_path / "run" / "checkpoints" / "step_000001" / "actor"), device=CPU.device)
    theirs = llm.model.get_parameter("model.norm.weight")
    assert torch.equal(theirs, learned.get_parameter("model.norm.weight"))
    assert not torch.equal(theirs, start.get_parameter("model.norm.weight"))
    assert "vLLM samples" in capsys.readouterr().out
