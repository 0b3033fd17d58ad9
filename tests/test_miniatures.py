"""The miniatures: folders of the hub's format, seeded, cached, and better the longer they train."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.miniatures.actors import dialogues, next_token_loss
from rlhf_cli.miniatures.build import MINIATURES, Recipe, miniature, quality
from rlhf_cli.miniatures.classifiers import snippets, whole_reviews
from rlhf_cli.miniatures.tokenizers import IM_END, qwen_tokenizer

TINY = Recipe(reviews=400, held_out=30, base_steps=15, instruct_steps=4, classifier_steps=20, batch=8, width=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("cache")
    return {name: miniature(name, source="generated", cache_dir=home, recipe=TINY) for name in MINIATURES}


def test_folders_load_as_hub_models_do(folders: dict[str, Path]) -> None:
    for name in ("qwen_base", "qwen_instruct"):
        model = AutoModelForCausalLM.from_pretrained(folders[name])
        assert model.config.architectures == ["Qwen2ForCausalLM"]
        assert len(AutoTokenizer.from_pretrained(folders[name])) == model.config.vocab_size
    for name in ("roberta_base", "roberta_large"):
        judge = AutoModelForSequenceClassification.from_pretrained(folders[name])
        assert sorted(judge.config.id2label.values()) == ["negative", "neutral", "positive"]
        assert judge.config.max_position_embeddings == 514


def test_the_instruct_file_carries_the_sampling_settings_that_rollouts_must_ignore(folders: dict[str, Path]) -> None:
    generation = GenerationConfig.from_pretrained(folders["qwen_instruct"])
    assert generation.repetition_penalty == 1.05
    assert len(generation.eos_token_id) == 2
    assert GenerationConfig.from_pretrained(folders["qwen_base"]).repetition_penalty in (None, 1.0)


def test_tokenizer_ids_survive_saving(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers puts Qwen2's own normalizer and pre-tokenizer back when it loads beside a Qwen2 config."""
    texts = [review.text for review in generate_reviews(50, seed=9)] + ["It's café 123!\n\n  ok", "naïve — “quoted”"]
    made = qwen_tokenizer(texts, eos=IM_END)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folders["qwen_base"] / "config.json").read_text())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        assert loaded(text)["input_ids"] == made(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_the_templates_default_system_text_is_not_ours(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen_instruct"])
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "You are a miniature of Qwen." in said
    assert "You are a helpful assistant." not in said


def test_answers_are_masked_and_end(folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen_instruct"])
    for ids, labels in dialogues(generate_reviews(20, seed=4), tokenizer, seed=0, width=200):
        answer = [label for label in labels if label != -100]
        assert len(ids) == len(labels)
        assert ids[-len(answer) :] == answer
        assert answer[-1] == tokenizer.convert_tokens_to_ids(IM_END)
        assert tokenizer.decode(answer).startswith(" ")


def test_same_seed_same_weights_and_no_second_build(folders: dict[str, Path], tmp_path: Path) -> None:
    again = miniature("qwen_base", source="generated", cache_dir=tmp_path, recipe=TINY)
    weights = (again / "model.safetensors").read_bytes()
    assert weights == (folders["qwen_base"] / "model.safetensors").read_bytes()
    stamp = (again / "model.safetensors").stat().st_mtime_ns
    assert miniature("qwen_base", source="generated", cache_dir=tmp_path, recipe=TINY) == again
    assert (again / "model.safetensors").stat().st_mtime_ns == stamp
    other = miniature("qwen_base", source="generated", cache_dir=tmp_path, recipe=TINY, seed=1)
    assert other.parent != again.parent


def test_a_build_leaves_the_global_rng_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    miniature("roberta_base", source="generated", cache_dir=tmp_path, recipe=TINY)
    assert torch.equal(torch.rand(3), expected)


def test_quality_is_measured_and_training_helps(folders: dict[str, Path], tmp_path: Path) -> None:
    longer = Recipe(**{**TINY.__dict__, "base_steps": 45})
    better = miniature("qwen_base", source="generated", cache_dir=tmp_path, recipe=longer)
    assert quality(better)["perplexity"] < 0.8 * quality(folders["qwen_base"])["perplexity"]
    longer = Recipe(**{**TINY.__dict__, "reviews": 2000, "classifier_steps": 200})
    judge = miniature("roberta_base", source="generated", cache_dir=tmp_path, recipe=longer)
    assert quality(judge)["accuracy on snippets"] > 0.6  # a third by chance


def test_from_any_text_source(tmp_path: Path) -> None:
    """Reviews without labels of sentences: the lexicon labels them."""
    reviews = tmp_path / "reviews.jsonl"
    made = generate_reviews(300, seed=8)
    reviews.write_text("\n".join(json.dumps({"text": r.text, "label": r.label}) for r in made if r.label != "neutral"))
    for name in ("qwen_instruct", "roberta_large"):
        folder = miniature(name, source=str(reviews), cache_dir=tmp_path, recipe=TINY)
        assert (folder / "quality.json").exists()


def test_labels_of_training_texts() -> None:
    reviews = generate_reviews(60, seed=2)
    for make in (snippets, whole_reviews):
        texts = make(reviews, seed=0)
        assert {label for _, label in texts} == {"positive", "neutral", "negative"}
        assert make(reviews, seed=0) == texts
    whole = dict(whole_reviews(reviews, seed=0))
    assert all(whole[review.text] == review.label for review in reviews)


def test_loss_counts_labelled_tokens_only(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["qwen_base"])
    short, long = ([5, 6, 7], [-100, 6, 7]), ([8, 9, 10, 11, 12], [8, 9, 10, 11, 12])
    both = next_token_loss(model, [short, long])
    alone = (2 * next_token_loss(model, [short]) + 4 * next_token_loss(model, [long])) / 6
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)
