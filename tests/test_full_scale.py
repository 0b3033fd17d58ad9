"""The full-scale path on folders of the hub models' exact format: their config keys, files and quirks, small sizes.

Qwen2.5-0.5B: bf16 safetensors, more rows in the vocabulary than the tokenizer has tokens, a generation_config with
sampling settings. The RoBERTa pair: pytorch_model.bin, written by old versions of transformers.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch

from rlhf_cli.cli import dispatch
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.miniatures.tokenizers import qwen_tokenizer, roberta_tokenizer
from rlhf_cli.tracking.jsonl import read_jsonl

SPARE_ROWS = 271
"""Qwen2.5-0.5B has 151,936 rows of embeddings for 151,665 tokens."""


def qwen_folder(to: Path, texts: list[str], *, instruct: bool) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = qwen_tokenizer(texts, eos="<|im_end|>" if instruct else "<|endoftext|>")
    end = tokenizer.eos_token_id
    keys = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": end,
        "hidden_act": "silu", "hidden_size": 56, "initializer_range": 0.02, "intermediate_size": 96,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": len(tokenizer) + SPARE_ROWS,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in keys.items() if k != "architectures"}))
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
    (to / "config.json").write_text(json.dumps(keys))
    generation = {"bos_token_id": 0, "eos_token_id": [end, 0], "do_sample": True, "repetition_penalty": 1.05}
    generation |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20} if instruct else {"max_new_tokens": 2048}
    (to / "generation_config.json").write_text(json.dumps(generation))
    return to


def roberta_folder(to: Path, texts: list[str], labels: list[str]) -> Path:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = roberta_tokenizer(texts)
    keys = {
        "architectures": ["RobertaForSequenceClassification"], "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0, "classifier_dropout": None, "eos_token_id": 2, "gradient_checkpointing": False,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32,
        "id2label": {str(i): label for i, label in enumerate(labels)}, "initializer_range": 0.02,
        "intermediate_size": 64, "label2id": {label: i for i, label in enumerate(labels)}, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 4, "num_hidden_layers": 2,
        "pad_token_id": 1, "position_embedding_type": "absolute", "torch_dtype": "float32",
        "transformers_version": "4.13.0.dev0", "type_vocab_size": 1, "use_cache": True, "vocab_size": len(tokenizer),
    }  # fmt: skip
    torch.manual_seed(1)
    model = RobertaForSequenceClassification(RobertaConfig(**{k: v for k, v in keys.items() if k != "architectures"}))
    to.mkdir(parents=True)
    tokenizer.save_pretrained(to)
    (to / "config.json").write_text(json.dumps(keys))
    old = {"roberta.embeddings.position_ids": torch.arange(514)[None]}  # old versions saved this buffer too
    torch.save({**model.state_dict(), **old}, to / "pytorch_model.bin")
    return to


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("hub")
    reviews = generate_reviews(400, seed=3)
    texts = [review.text for review in reviews]
    rows = [json.dumps({"text": r.text, "label": r.label}) for r in reviews]
    (home / "reviews.jsonl").write_text("\n".join(rows))
    return {
        "instruct": qwen_folder(home / "Qwen2.5-0.5B-Instruct", texts, instruct=True),
        "base": qwen_folder(home / "Qwen2.5-0.5B", texts, instruct=False),
        "twitter": roberta_folder(home / "twitter-roberta", texts, ["negative", "neutral", "positive"]),
        "large": roberta_folder(home / "sentiment-roberta-large", texts, ["negative", "neutral", "positive"]),
        "shuffled": roberta_folder(home / "shuffled", texts, ["Positive", "NEGATIVE", "Neutral"]),
        "reviews": home / "reviews.jsonl",
    }


def overrides(models: dict[str, Path], folder: Path) -> list[str]:
    return [
        "scale=full", "device=cpu", "tracking=none", "steps=2", "rollout.batch_size=8", "optim.warmup_steps=1",
        "rollout.max_response_length=12", "val.prompts=6", "data.train=12", "data.test=6", "data.labeler=vader",
        f"actor.path={models['instruct']}", f"reward.path={models['large']}", f"data.source={models['reviews']}",
        f"cache_dir={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [["precision=fp32"], ["precision=bf16"], ["algo=grpo", "precision=bf16"]])
def test_trains_from_hub_format_folders(models: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    assert dispatch(["train", *overrides(models, tmp_path), *options]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for row in rows[1:]:  # exactly 1 at first, then a little more: four updates at a learning rate of 1e-6
        assert 1 < row["train/ratio_max"] < 1.01
    assert abs(rows[1]["train/kl"]) < (1e-4 if "precision=fp32" in options else 0.5)
    saved = tmp_path / "run" / "checkpoints" / "step_000002" / "actor"
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    weights = load_file(str(saved / "model.safetensors"))
    assert {w.dtype for w in weights.values()} == {torch.float32}  # master weights
    assert AutoModelForCausalLM.from_pretrained(saved).config.vocab_size > SPARE_ROWS


def test_base_actor_with_another_critic_and_the_twitter_model(models: dict[str, Path], tmp_path: Path) -> None:
    other = [f"actor.path={models['base']}", f"critic.path={models['instruct']}", f"reward.path={models['twitter']}"]
    names = ["actor=qwen_base", "critic=qwen_instruct", "reward=roberta_base"]
    assert dispatch(["train", *overrides(models, tmp_path), *names, *other]) == 0


def test_a_local_classifier_labels(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights put nearly everything in one class: too few of the others is said, with the counts."""
    arguments = overrides(models, tmp_path)
    assert dispatch(["train", *arguments, f"data.labeler={models['large']}"]) == 2
    assert "data.labeler" in capsys.readouterr().err
    assert dispatch(["train", *arguments, "data.labeler=robert"]) == 2
    assert "allowed are roberta_large" in capsys.readouterr().err


def test_negative_is_found_by_name(models: dict[str, Path]) -> None:
    from rlhf_cli.rewards.classifier import Classifier

    judge = Classifier(models["shuffled"], device=torch.device("cpu"), batch_size=4, dtype=torch.float32)
    texts = ["A dull film.", "A bright film. " * 300]
    assert torch.equal(judge.score(texts, "negative"), judge.probabilities(texts)[:, 1])
    assert judge.limit == 512
    assert judge.truncated == 2  # the long text, judged twice


def test_a_reward_model_without_the_class_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stars = roberta_folder(tmp_path / "stars", ["one two three"] * 9, ["1 star", "2 stars", "3 stars"])
    assert dispatch(["train", *overrides(models, tmp_path), f"reward.path={stars}"]) == 2
    assert "no class 'negative'; it has: 1 star, 2 stars, 3 stars" in capsys.readouterr().err


class _Trap:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = roberta_folder(tmp_path / "evil", ["one two three"] * 9, ["negative", "neutral", "positive"])
    (evil / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": _Trap(tmp_path / "touched")}))
    assert dispatch(["train", *overrides(models, tmp_path), f"reward.path={evil}"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


def test_the_files_sampling_settings_change_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    assert dispatch(["train", *overrides(models, tmp_path / "a"), "steps=1"]) == 0
    generation = models["instruct"] / "generation_config.json"
    before = generation.read_text()
    try:
        cold = json.loads(before) | {"temperature": 0.01, "top_k": 1}
        generation.write_text(json.dumps(cold))
        assert dispatch(["train", *overrides(models, tmp_path / "b"), "steps=1"]) == 0
    finally:
        generation.write_text(before)
    one, other = ((tmp_path / run / "run" / "samples.jsonl").read_text() for run in "ab")
    assert one == other
