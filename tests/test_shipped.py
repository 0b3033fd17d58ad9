"""The miniatures that ship: whole, small, of this generator, and nothing on the CPU is in bfloat16 unless asked for."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from helpers.runs import train
from torch.utils._python_dispatch import TorchDispatchMode  # the only way to see a backward pass's operations
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.cli import dispatch
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.miniatures import build
from rlhf_cli.miniatures.actors import CHAT, dialogues, documents, perplexity
from rlhf_cli.miniatures.build import LONG, MINIATURES, SHIPPED, Recipe, miniature, quality


def test_they_are_whole_and_small(tmp_path: Path) -> None:
    sizes = [file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(sizes) < 12e6
    for name in MINIATURES:
        assert miniature(name, source="generated", cache_dir=tmp_path) == SHIPPED / name
        assert quality(SHIPPED / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MINIATURES)
def test_the_cards_tell_the_truth(name: str) -> None:
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    weights = (SHIPPED / name / "model.safetensors").read_bytes()
    assert f"`{hashlib.sha256(weights).hexdigest()}`" in card
    assert str(LONG) in card.replace("\n", " ")
    for key, value in quality(SHIPPED / name).items():
        assert f"| {key} | {value:.4g} |" in card


@pytest.mark.parametrize(("name", "make"), [("qwen_base", documents), ("qwen_instruct", dialogues)])
def test_their_perplexity_is_what_they_say(name: str, make) -> None:
    """On reviews that they have not seen; a sample of them, hence the tolerance."""
    model = AutoModelForCausalLM.from_pretrained(SHIPPED / name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / name)
    unseen = generate_reviews(LONG.reviews + 150, 0)[LONG.reviews :]
    found = perplexity(model, make(unseen, tokenizer, seed=1, width=LONG.width))
    assert found == pytest.approx(quality(SHIPPED / name)["perplexity"], rel=0.05)


def test_the_instruct_actor_answers_in_words_of_the_corpus_and_ends() -> None:
    folder = SHIPPED / "qwen_instruct"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    reviews = generate_reviews(4000, 0)
    known = {word for review in reviews for word in re.findall(r"\w+", review.text.lower())}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for review in generate_reviews(LONG.reviews + 5, 0)[LONG.reviews :]:
        prefix = " ".join(review.text.split()[:5])
        ids = torch.tensor([CHAT.ids(tokenizer, prefix)])
        out = model.generate(ids, do_sample=False, repetition_penalty=1.0, max_new_tokens=48, pad_token_id=0)[
            0, ids.shape[1] :
        ]
        assert end in out
        said = tokenizer.decode(out, skip_special_tokens=True)
        assert set(re.findall(r"\w+", (prefix + said).lower())) <= known


class Bfloat16Seen(TorchDispatchMode):
    """Names of the operations that touched a bfloat16 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in (*args, *(kwargs or {}).values(), out):
            if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16:
                self.seen.add(str(func))
        return out


def test_nothing_is_in_bfloat16_on_the_cpu_unless_asked_for(cache: Path, tmp_path: Path) -> None:
    tiny = Recipe(reviews=60, held_out=5, base_steps=2, instruct_steps=2, classifier_steps=2, batch=4, width=128)
    with Bfloat16Seen() as watch:
        for name in MINIATURES:
            miniature(name, source="generated", cache_dir=tmp_path, recipe=tiny)
        assert train(tmp_path / "run", "steps=1", "reward=roberta_base", "gold=roberta_large") == 0
        assert dispatch(["eval", str(tmp_path / "run")]) == 0
    assert not watch.seen
    with Bfloat16Seen() as watch:
        assert train(tmp_path / "low", "steps=1", "precision=bf16") == 0
    assert watch.seen, "the watch sees nothing: the test above could not fail"


def test_they_are_made_anew_on_request(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Recipe(reviews=60, held_out=5, base_steps=2, instruct_steps=2, classifier_steps=2, batch=4, width=128)
    monkeypatch.setattr(build, "LONG", tiny)
    assert dispatch(["models", "scale=mini", "rebuild=true", f"out={tmp_path / 'anew'}"]) == 0
    told = capsys.readouterr().out
    assert "qwen_instruct, shipped" in told
    assert "qwen_instruct, rebuilt" in told
    assert (tmp_path / "anew" / "roberta_large" / "model.safetensors").exists()
    assert dispatch(["models", "scale=mini", f"out={tmp_path}"]) == 2
    assert "add rebuild=true" in capsys.readouterr().err
