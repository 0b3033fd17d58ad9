"""Reward models and judges of any sequence-classification family: padding, empty texts, limits, labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import train
from helpers.tiny_models import tokenizer
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.rewards.classifier import Classifier
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.tracking.jsonl import read_jsonl

CPU = torch.device("cpu")
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": LLAMA,
    "qwen2": LLAMA,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": None},
    "roberta": LLAMA | {"pad_token_id": 0},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "pad_token_id": 0},
}
LIMITS = {"gpt2": 64, "llama": 64, "qwen2": 64, "bloom": 1024, "roberta": 63, "xlnet": 1024}  # 1024: the tokenizer's
NAMES = ["neutral", "Negative", "positive"]
TEXTS = ["", "A dull film.", " ", "I love this film, it is the best of all that I have seen.", "A dull film."]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), [r.text for r in generate_reviews(200, seed=0)])


def folder(kind: str, place: Path, tokens: Any, names: list[str], pad: str | None = None, **more: Any) -> Path:
    """A random classifier, and a tokenizer that pads with `pad` or cannot."""
    config = CONFIG_MAPPING[kind](
        vocab_size=len(tokens), eos_token_id=tokens.eos_token_id, bos_token_id=tokens.eos_token_id, **FAMILIES[kind]
    )
    config.num_labels = len(names)
    if len(names) > 1:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    for name, value in more.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(place)
    kept, tokens.pad_token = tokens.pad_token, pad
    tokens.save_pretrained(place)
    tokens.pad_token = kept
    return place


@torch.no_grad()
def alone(place: Path, tokens: Any, texts: list[str]) -> torch.Tensor:
    """The logits of plain transformers, a text at a time; EOS stands for nothing."""
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    rows = [tokens(text)["input_ids"] or [tokens.eos_token_id] for text in texts]
    return torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.smoke
def test_every_family_judges_texts_as_it_does_alone(kind: str, tmp_path: Path, tokens: Any) -> None:
    place = folder(kind, tmp_path / "three", tokens, NAMES)
    judge = Classifier(place, device=CPU, batch_size=8, dtype=torch.float32)
    torch.testing.assert_close(judge.probabilities(TEXTS), alone(place, tokens, TEXTS).softmax(-1), atol=1e-5, rtol=0)
    assert torch.equal(judge.score(TEXTS, "negative"), judge.probabilities(TEXTS)[:, 1])
    assert judge.tokenizer.pad_token_id == judge.model.config.pad_token_id is not None
    assert judge.tokenizer.padding_side == ("left" if kind == "xlnet" else "right")
    assert judge.limit == LIMITS[kind]
    assert judge.truncated == 0
    assert judge.score(["a film " * 60, "a"], "negative").isfinite().all()
    assert judge.truncated == (LIMITS[kind] < 1024)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_a_learned_reward(kind: str, tmp_path: Path, tokens: Any) -> None:
    place = folder(kind, tmp_path / "one", tokens, ["score"])
    reward = LearnedReward(place, device=CPU, batch_size=8, dtype=torch.float32)
    expected = alone(place, tokens, TEXTS).squeeze(-1)
    torch.testing.assert_close(reward.score(TEXTS), expected, atol=1e-5, rtol=0)
    rewards = reward.rewards(TEXTS)
    torch.testing.assert_close(rewards.detach(), expected, atol=1e-5, rtol=0)
    rewards.sum().backward()
    reward.save(tmp_path / "saved", mean=1.0, std=2.0)
    again = LearnedReward(tmp_path / "saved", device=CPU, batch_size=8, dtype=torch.float32)
    torch.testing.assert_close(again.score(TEXTS), (expected - 1) / 2, atol=1e-5, rtol=0)
    fresh = LearnedReward(
        folder(kind, tmp_path / "three", tokens, NAMES), device=CPU, batch_size=8, dtype=torch.float32, new_head=True
    )
    assert fresh.score(TEXTS).shape == (len(TEXTS),)


def test_the_padding_token_is_the_configs_then_the_tokenizers_then_eos(tmp_path: Path, tokens: Any) -> None:
    other = tokens.convert_ids_to_tokens(7)
    for name, configured, pad, expected in (
        ("config", 9, other, 9),
        ("tokenizer", None, other, 7),
        ("neither", None, None, tokens.eos_token_id),
        ("outside", -1, None, tokens.eos_token_id),
    ):
        place = folder("llama", tmp_path / name, tokens, NAMES, pad=pad, pad_token_id=configured)
        judge = Classifier(place, device=CPU, batch_size=8, dtype=torch.float32)
        assert judge.tokenizer.pad_token_id == judge.model.config.pad_token_id == expected


def test_an_eos_that_the_tokenizer_appends_is_read_and_is_no_padding(tmp_path: Path, tokens: Any) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    place = folder("llama", tmp_path / "model", tokens, NAMES)
    appending, name = AutoTokenizer.from_pretrained(place), tokens.eos_token
    appending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {name}", special_tokens=[(name, tokens.eos_token_id)]
    )
    appending.save_pretrained(place)
    judge = Classifier(place, device=CPU, batch_size=8, dtype=torch.float32)
    assert judge.tokenizer("a")["input_ids"][-1] == tokens.eos_token_id != judge.tokenizer.pad_token_id
    expected = alone(place, appending, TEXTS).softmax(-1)
    torch.testing.assert_close(judge.probabilities(TEXTS), expected, atol=1e-5, rtol=0)


def test_heads_and_labels_that_do_not_fit_say_what_to_type(tmp_path: Path, tokens: Any) -> None:
    def judge(name: str, names: list[str], **more: Any) -> Classifier:
        place = folder("gpt2", tmp_path / name, tokens, names, **more)
        return Classifier(place, device=CPU, batch_size=8, dtype=torch.float32)

    unnamed = judge("unnamed", ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(UserError, match=r"no class 'negative'; it has: LABEL_0, LABEL_1, LABEL_2 \(set reward.target"):
        unnamed.score(["a"], "negative")
    with pytest.raises(
        UserError, match=r"say reward.target='LABEL_0', or write the names .* id2label in .*config.json"
    ):
        unnamed.score(["a"], "negative")
    assert unnamed.score(["a"], "label_1").shape == (1,)
    assert judge("spaces", ["negative ", "POSITIVE"]).score(["a"], "Negative").shape == (1,)
    for kind in ("multi_label_classification", "regression"):
        with pytest.raises(UserError, match=f"problem_type={kind} for 3 outputs .neutral, Negative, positive.*there"):
            judge(kind, NAMES, problem_type=kind)
    with pytest.raises(UserError, match="one output and no classes: a reward model is reward=learned"):
        judge("one", ["score"])
    with pytest.raises(UserError, match=r"3 outputs \(neutral, Negative, positive\) is no learned reward model"):
        LearnedReward(folder("gpt2", tmp_path / "three", tokens, NAMES), device=CPU, batch_size=8, dtype=torch.float32)


def test_a_run_is_rewarded_and_judged_by_decoders(cache: Path, tmp_path: Path, tokens: Any) -> None:
    reward, gold = folder("llama", tmp_path / "r", tokens, ["score"]), folder("gpt2", tmp_path / "g", tokens, NAMES)
    options = [
        "reward=learned",
        f"reward.path={reward}",
        "reward.text=response",
        "gold=roberta_large",
        f"gold.path={gold}",
        "steps=1",
    ]
    assert train(tmp_path / "run", "algo=grpo", "algo.group_size=4", *options) == 0
    last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 < last["val/gold_score"] < 1
    assert last["val/score"] == last["val/score"]
