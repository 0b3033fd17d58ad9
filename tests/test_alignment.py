"""A run's last digits do not depend on where a file's weights lie: what a product reads is 64-byte aligned."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import numbers, train
from helpers.unaligned import unaligned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.cli import dispatch
from rlhf_cli.engine import casts, scratch
from rlhf_cli.engine.load import load_actor, load_classifier, load_critic
from rlhf_cli.miniatures.build import miniature
from rlhf_cli.runs.checkpoint import load_trainer, newest

CPU = torch.device("cpu")
PRODUCTS = ("mm", "mv", "dot", "linear", "attention")
"""Parts of the names of operations that are products or made of them."""


def off_the_line(tensors: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tensors) if isinstance(t, Tensor) and t.numel() and t.data_ptr() % 64]


class Watch(TorchDispatchMode):
    """Counts products, and those whose factors or results are not aligned, or are parts of memory that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.unaligned: Counter[str] = Counter()
        self.parts_of_unaligned: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if any(part in name for part in PRODUCTS):
            self.seen[name] += 1
            for found in off_the_line((args, kwargs)):
                what = f"{name}: {tuple(found.shape)} at {found.data_ptr() % 64}"
                self.unaligned[what] += 1
                self.parts_of_unaligned[what] += found.untyped_storage().data_ptr() % 64 > 0
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def models(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Miniatures whose weights lie 4 bytes past a 64-byte boundary of their files."""
    home = tmp_path_factory.mktemp("unaligned")
    names = ("qwen_instruct", "roberta_large")
    return {name: unaligned(miniature(name, source="generated", cache_dir=cache), home / name) for name in names}


def test_the_models_of_these_tests_are_mapped_unaligned(models: dict[str, Path]) -> None:
    """Else the others could not fail."""
    from transformers import AutoModelForCausalLM

    for folder in models.values():
        assert (8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")) % 64 == 4
    weights = list(AutoModelForCausalLM.from_pretrained(models["qwen_instruct"], dtype=torch.float32).parameters())
    assert len(off_the_line(weights)) == len(weights)


def test_what_is_loaded_is_aligned_tied_and_out_of_the_file(models: dict[str, Path]) -> None:
    folder = models["qwen_instruct"]
    loaded = [load_actor(str(folder), device=CPU), load_actor(str(folder), device=CPU, dtype=torch.bfloat16)]
    loaded += [load_critic(str(folder), device=CPU)]
    loaded += [load_classifier(str(models["roberta_large"]), device=CPU, labels=n) for n in (None, 1)]
    for model in loaded:
        assert not off_the_line([*model.parameters(), *model.buffers()])
    assert loaded[0].lm_head.weight is loaded[0].model.embed_tokens.weight
    assert loaded[0].config.tie_word_embeddings
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(folder) not in maps.read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["algo=ppo", "critic=qwen_instruct"],
        ["algo=ppo", "critic=shared"],
        ["algo=grpo", "algo.group_size=4", "precision=bf16"],
        ["algo=trpo", "algo.cg_steps=1", "algo.line_search_steps=1"],
    ],
    ids=lambda options: " ".join(options[:2]),
)
def test_every_product_of_a_run_and_of_its_resumption_reads_aligned_memory(
    models: dict[str, Path], tmp_path: Path, options: list[str]
) -> None:
    """Models, value heads, bfloat16 copies, weights laid out for decoding, the KV cache, activations, gradients."""
    given = [f"actor.path={models['qwen_instruct']}", f"reward.path={models['roberta_large']}", "gold=none"]
    with Watch() as watch:
        assert train(tmp_path, *options, *given, "reward=roberta_large", "steps=1") == 0
        first = watch.seen.copy()
        assert dispatch(["train", f"resume={tmp_path}", "steps=2"]) == 0
    for name in ("mm", "addmm", "bmm", "linear"):
        assert watch.seen[name] > first[name] > 0
    assert not watch.unaligned
    folder = newest(tmp_path, print)
    assert folder
    assert not off_the_line(load_trainer(folder)[0])


def test_a_copy_in_bfloat16_is_aligned() -> None:
    weight = torch.nn.Parameter(torch.randn(65)[1:].view(8, 8))
    assert off_the_line([weight])
    assert not off_the_line([casts.cached_cast(weight, torch.bfloat16)])


@pytest.fixture(scope="module")
def odd(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An actor none of whose rows is a whole number of cache lines."""
    to = unaligned(models["qwen_instruct"], tmp_path_factory.mktemp("odd") / "model")
    known = json.loads((to / "config.json").read_text())
    sizes = {"vocab_size": known["vocab_size"] + 3, "hidden_size": 36, "intermediate_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "head_dim": 18}
    torch.manual_seed(0)
    rope = {"rope_parameters": known.get("rope_parameters")}
    ends = {"eos_token_id": known["eos_token_id"], "tie_word_embeddings": True}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, **rope, **ends)).save_pretrained(to)
    return unaligned(to, to.with_name("unaligned"))


def test_with_rows_of_any_length_a_slice_is_where_the_shapes_put_it(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such slices are not aligned, but the memory that they are of is, however much scratch memory there was before."""
    given = [f"actor.path={odd}", "critic=qwen_instruct", "reward=vader", "gold=none", "optim.micro_batch_size=3"]
    with Watch() as watch:
        assert train(tmp_path / "whole", *given) == 0
        assert train(tmp_path / "cut", *given, "steps=2") == 0
        monkeypatch.setattr(scratch, "_scratch", {})
        monkeypatch.setattr(scratch, "_returned", {})
        assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=3"]) == 0
    assert watch.unaligned
    assert not +watch.parts_of_unaligned
    whole, cut = numbers(tmp_path / "whole"), numbers(tmp_path / "cut")
    assert whole[:3] == cut[:3]
    assert {k: cut[3][k] for k in whole[3]} == whole[3]
