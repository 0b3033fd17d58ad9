"""Language models of many kinds: the two ways, the gate between them, value heads, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import CPU, alone, differences, draw, gap, plainly, reload_difference
from helpers.tiny_models import make, tokenizer
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, Qwen2ForTokenClassification, T5Config, T5ForConditionalGeneration

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.data.prompts import Template, response_texts, with_bos
from rlhf_cli.engine import dropout, gate
from rlhf_cli.engine.decoder import Decoder, describe, named_weights
from rlhf_cli.engine.load import load_actor, load_critic, load_tokenizer
from rlhf_cli.engine.read import read
from rlhf_cli.runs.warnings import Warnings
from rlhf_cli.tracking.jsonl import read_jsonl

FAST = ["qwen2, window of 8", "qwen2, yarn", "qwen3", "llama 3 rotary", "llama, biases", "smollm3", "gemma", "granite"]
SMOKE = ["qwen2, yarn", "llama 3 rotary", "gemma", "gpt2", "gemma 2", "mixtral", "mamba"]
PLAIN = ["gpt2", "gemma 2", "phi", "opt, projected", "bloom", "gpt_oss", "cohere", "mixtral", "mamba"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), [r.text for r in generate_reviews(200, seed=0)])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.smoke if kind in SMOKE else ()) for kind in (*FAST, *PLAIN)]
)
def test_every_kind_is_plain_transformers_alone(kind: str, tmp_path: Path, tokens: Any) -> None:
    found = differences(make(kind, tmp_path / "model", tokens))
    assert found.way.startswith("fast" if kind in FAST else "plain")
    assert found.numbers < 1e-4
    assert found.gradients < 1e-3


def test_a_description_that_is_wrong_is_found_by_the_gate(
    tmp_path: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    def wrong(config: Any, names: Any) -> Decoder:
        found = describe(config, names)
        assert isinstance(found, Decoder)
        return replace(found, scale=1.1 * found.scale)

    folder = make("llama", tmp_path / "model", tokens)
    monkeypatch.setattr(gate, "describe", wrong)
    actor = load_actor(str(folder), device=CPU)
    assert gate.way_of(actor).decoder is None
    assert "plain way, through the model's own forward: the fast way differs by" in str(gate.way_of(actor))
    rollout = draw(actor, tokens, [3, 5], 2)
    assert gap(rollout.logprobs, alone(plainly(folder), rollout, 0.9)[0]) < 1e-4


def test_weights_that_the_description_does_not_know_take_the_plain_way(tmp_path: Path, tokens: Any) -> None:
    actor = load_actor(str(make("llama", tmp_path / "model", tokens)), device=CPU)
    names = [*named_weights(actor), "model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert "lora_A" in str(describe(actor.config, names))


def test_a_model_whose_dropout_stays_on_learns_in_eval_mode(tmp_path: Path, tokens: Any) -> None:
    actor = load_actor(str(make("llama", tmp_path / "model", tokens)), device=CPU)
    noise = actor.get_decoder().register_forward_hook(
        lambda module, given, out: setattr(
            out, "last_hidden_state", torch.nn.functional.dropout(out.last_hidden_state, 0.3, module.training)
        )
    )
    dropout.without_dropout(actor)
    assert dropout.learns_in_eval_mode(actor)
    dropout.train_mode(actor)
    assert not actor.training
    noise.remove()
    dropout.without_dropout(actor)
    dropout.train_mode(actor)
    assert actor.training


TRAIN = [
    "scale=mini", "device=cpu", "tracking=none", "steps=1", "data.source=generated", "data.train=12", "data.test=6",
    "data.labeler=vader", "val.prompts=3", "rollout.batch_size=8", "rollout.max_response_length=8", "reward=vader",
    "gold=none", "prompt=plain", "optim.warmup_steps=0", "optim.actor_lr=1e-3",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("algo", [["ppo"], ["ppo", "critic=shared"], ["grpo", "algo.group_size=4"], ["trpo"]])
def test_trains_saves_and_loads_plainly(
    kind: str, algo: list[str], tmp_path: Path, tokens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(kind, tmp_path / "model", tokens)
    options = [f"algo={algo[0]}", *algo[1:], f"actor.path={folder}", f"cache_dir={tmp_path / 'cache'}"]
    options += ["optim.gradient_checkpointing=true"] if algo == ["ppo"] else []
    assert dispatch(["train", *TRAIN, *options, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[1]
    assert row["train/logprob_mismatch"] < 1e-4
    assert abs(row["train/kl"]) < 1e-4
    assert ("the actor takes the plain way" in capsys.readouterr().out) == (kind == "gpt2")
    saved = tmp_path / "run" / "checkpoints" / "step_000001"
    before, after = (load_file(str(f / "model.safetensors")) for f in (folder, saved / "actor"))
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    assert reload_difference(saved / "actor") < 1e-4
    assert dispatch(["train", f"resume={tmp_path / 'run'}", "steps=2"]) == 0


def test_a_saved_critic_loads_with_its_head_and_so_does_an_old_one(tmp_path: Path, tokens: Any) -> None:
    folder = make("qwen2", tmp_path / "model", tokens)
    critic = load_critic(str(folder), device=CPU)
    assert not critic.score.weight.any()
    torch.nn.init.normal_(critic.score.weight)
    critic.save_pretrained(tmp_path / "critic")
    old = Qwen2ForTokenClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    old.score.load_state_dict(critic.score.state_dict())
    old.save_pretrained(tmp_path / "old")
    for saved in ("critic", "old"):
        again = load_critic(str(tmp_path / saved), device=CPU)
        for (name, one), (other_name, other) in zip(critic.named_parameters(), again.named_parameters(), strict=True):
            assert name == other_name
            assert torch.equal(one, other)


def test_what_is_no_causal_language_model_is_one_message(tmp_path: Path) -> None:
    small = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "vocab_size": 32}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match=r"is an encoder-decoder \(t5\): rlhf trains decoder-only"):
        load_actor(str(tmp_path / "t5"), device=CPU)
    tiny = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        architectures=["BertLMHeadModel"],
    )  # fmt: skip
    from transformers import BertLMHeadModel, CLIPConfig

    BertLMHeadModel(tiny).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert is no causal language model"):
        load_actor(str(tmp_path / "bert"), device=CPU)
    BertModel(tiny).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="holds no weights for"):
        load_actor(str(tmp_path / "encoder"), device=CPU)
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="is a clip model, which is no causal language model"):
        load_actor(str(tmp_path / "clip"), device=CPU)


def test_bos_stands_once_where_the_tokenizer_puts_it(tokens: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokens.save_pretrained(tmp_path)
    bos = load_tokenizer(str(tmp_path))
    plain = bos("A film", add_special_tokens=False)["input_ids"]
    assert with_bos(bos, "A film") == plain
    name, number = bos.eos_token, bos.eos_token_id
    bos.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A {name}", special_tokens=[(name, number)]
    )
    assert bos("A film")["input_ids"] == [number, *plain, number]
    assert with_bos(bos, "A film") == [number, *plain]
    assert with_bos(bos, f"{name}A film") == [number, *plain]
    assert Template("plain", None, "{prefix}").ids(bos, "A film") == [number, *plain]


def test_a_chat_template_without_a_system_role_has_its_text_in_the_user_turn(tokens: Any) -> None:
    template, kept = Template("chat", "Be brief.", "Go on: {prefix}"), tokens.chat_template
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    dropping = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        tokens.chat_template = turns
        assert template.fitted(tokens) is template
        for without in (refusing + turns, dropping):
            tokens.chat_template = without
            fitted = template.fitted(tokens)
            assert tokens.decode(fitted.ids(tokens, "A film")) == "<user>Be brief.\n\nGo on: A film"
    finally:
        tokens.chat_template = kept


def test_sentencepiece_keeps_the_space_before_a_response() -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({"▁a": 0, "▁film": 1, "▁is": 2, "s": 3, "<unk>": 4}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert words.decode([1]) == "film"
    assert response_texts(words, [[0], [0, 1]], [[1, 2], [3, 2]]) == [" film is", "s is"]


def test_a_mismatch_is_said_once() -> None:
    watch = Warnings()
    assert watch.after({"train/logprob_mismatch": 0.009}) == []
    assert "rlhf doctor" in watch.after({"train/logprob_mismatch": 0.02})[0]
    assert watch.after({"train/logprob_mismatch": 0.5}) == []
    assert Warnings(precision="bf16").after({"train/logprob_mismatch": 0.15}) == []


def test_reading_finds_the_way_of_a_model_that_was_not_loaded_here(tmp_path: Path, tokens: Any) -> None:
    model = plainly(make("gpt2", tmp_path / "model", tokens))
    rollout = draw(model, tokens, [3, 5, 1], 1)
    with torch.no_grad():
        found = read(model, rollout, temperature=0.9)
    assert gap(found.logprobs, alone(model, rollout, 0.9)[0]) < 1e-4


def test_a_model_whose_numbers_are_not_finite_is_called_so(tmp_path: Path, tokens: Any) -> None:
    actor = load_actor(str(make("qwen2", tmp_path / "model", tokens)), device=CPU)
    del actor.__dict__[gate.WAY]
    with torch.no_grad():
        actor.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    assert "not finite" in gate.way_of(actor).why
