"""Low-rank adapters of classifiers and reward models: nothing at first, of low rank then, plain again when merged."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALL
from torch import nn

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.engine.load import load_classifier
from rlhf_cli.engine.low_rank import add_low_rank, merge_low_rank
from rlhf_cli.miniatures.build import SHIPPED
from rlhf_cli.tracking.jsonl import read_jsonl

LORA = {"rank": 2, "alpha": 4.0, "targets": "all-linear", "key": "reward_train"}


def classifier() -> nn.Module:
    return load_classifier(str(SHIPPED / "roberta_large"), device=torch.device("cpu"), dtype=torch.float32)


def test_adapters_learn_and_the_trunk_does_not(tmp_path: Path) -> None:
    model = classifier()
    ids = torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(0))
    before, start = {n: p.clone() for n, p in model.named_parameters()}, model(input_ids=ids).logits
    add_low_rank(model, **LORA)
    assert torch.equal(model(input_ids=ids).logits, start)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) < sum(p.numel() for p in model.parameters()) / 4
    optimizer = torch.optim.AdamW(learned, lr=0.01)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = model(input_ids=ids).logits
    merge_low_rank(model)
    assert torch.allclose(model(input_ids=ids).logits, moved, atol=1e-5)
    assert {type(m) for n, m in model.base_model.named_modules() if n.endswith("query")} == {nn.Linear}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trunk = {n for n in changed if n.startswith(model.base_model_prefix)}
    assert trunk == {
        f"{model.base_model_prefix}.{n}.weight" for n, m in model.base_model.named_modules() if type(m) is nn.Linear
    }
    assert changed - trunk  # the head learns whole
    weights = dict(model.named_parameters())
    assert all(torch.linalg.matrix_rank(weights[n] - before[n], rtol=1e-3) <= 2 for n in trunk)
    model.save_pretrained(tmp_path)
    again = load_classifier(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_layers_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"reward_train\.lora\.targets=.*it has .*query"):
        add_low_rank(classifier(), **LORA | {"targets": ["q_proj"]})


def test_a_reward_model_learns_by_adapters(cache: Path, tmp_path: Path) -> None:
    groups = [
        {"prompt": f"Film {i} is", "responses": [f" dull number {i}.", f" fine number {i}.", f" great number {i}."]}
        for i in range(60)
    ]
    data, run = tmp_path / "ranked.jsonl", tmp_path / "rm"
    data.write_text("\n".join(map(json.dumps, groups)), encoding="utf-8")
    options = [f"reward_train.data={data}", "reward_train.lr=1e-2", "reward_train.epochs=4", f"hydra.run.dir={run}"]
    assert dispatch(["reward-train", *SMALL, *options, "reward_train.lora.rank=4"]) == 0
    assert read_jsonl(run / "metrics.jsonl")[-1]["val/pairwise_accuracy"] > 0.95
    assert dispatch(
        ["train", *SMALL, "reward=learned", f"reward.path={run}/reward_model", "steps=0", f"hydra.run.dir={tmp_path}/r"]
    ) == 0  # fmt: skip


def test_a_classifier_learns_by_adapters(cache: Path, tmp_path: Path) -> None:
    typed = [
        "classifier-train", "scale=mini", "tracking=none", "classifier_train.texts=400", "classifier_train.epochs=2",
        "classifier_train.lr=1e-2", "classifier_train.lora.rank=4", f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    assert dispatch(typed) == 0
    told = json.loads((tmp_path / "classifier" / "quality.json").read_text())
    assert told["whole"]["accuracy"] > 0.9
