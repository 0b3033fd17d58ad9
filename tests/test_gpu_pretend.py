"""Whole steps on a CPU that passes for a GPU: nothing a GPU would refuse, and few waits of the host for it."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import study as studies
from helpers.pretend_gpu import GPU, Refused, Watch, on_gpu, pretend
from helpers.study import COUNT, Study, sevens, tiny
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2ForCausalLM

from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine import cuda_graph_decode, forward, gate, varlen
from rlhf_cli.engine import sample as sampling
from rlhf_cli.engine.forward import differentiable_twice
from rlhf_cli.engine.load import lowered
from rlhf_cli.engine.read import response_logprobs
from rlhf_cli.rewards.scorer import Scorer
from rlhf_cli.rl.rollout import Rollout
from rlhf_cli.training.validation import validate


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    with pretend(monkeypatch) as watch:

        def capture(step: cuda_graph_decode.CapturedStep, rows: int):
            watch.capturing = True
            try:
                step._token(rows)
            finally:
                watch.capturing = False
            return partial(step._token, rows)

        monkeypatch.setattr(cuda_graph_decode.CapturedStep, "_capture", capture)
        yield watch


WAITS = 6
"""Of a step: sampling, texts, two looks for NaN, the metrics of the batch and of the update; beside them one for the
gradient norm of each update."""


def waits(watch: Watch) -> int:
    """The clip's `to` is torch's: it looks at where tensors truly are."""
    return sum(n for where, n in watch.waits.items() if "processes.py" not in where)


@pytest.mark.parametrize("algo", ["ppo", "ppo critic=shared", "grpo", "rloo", "dapo", "reinforce", "ppo_full", "trpo"])
def test_a_step_is_a_gpus_and_seldom_waits(algo: str, gpu: Watch) -> None:
    study = Study(*f"algo={algo}".split())
    study.step(1)
    gpu.waits.clear()
    assert study.step(2)["train/grad_norm"] > 0
    updates = study.algorithm.epochs * study.algorithm.minibatches
    if study.algorithm.trust_region is None:
        critics = 2 if study.critic and study.critic.optimizer else 1
        assert waits(gpu) <= WAITS + critics * updates, gpu.waits


@pytest.mark.parametrize("algo", ["ppo", "grpo", "trpo"])
def test_every_operation_of_a_step_has_a_cuda_kernel(algo: str, gpu: Watch) -> None:
    """By torch's own list, which comes with it."""
    import torchgen
    import yaml

    listed = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(listed.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    known = {entry["func"].partition("(")[0]: entry for entry in entries}

    def runs_on_cuda(name: str) -> bool:
        entry = known[name]
        if "structured_delegate" in entry:
            return runs_on_cuda(entry["structured_delegate"])
        keys = {
            key.strip() for keys in entry.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in keys.split(",")
        }
        return "ufunc_inner_loop" in entry or any(key == "CUDA" or key.startswith("Composite") for key in keys)

    Study(f"algo={algo}", dtype=torch.bfloat16).step(1)
    # attention is fused here by a kernel of the CPU's, which has its twin on a GPU
    names = {op.removeprefix("aten.").removesuffix(".default").replace("_for_cpu", "") for op in gpu.ops}
    theirs = sorted(name for name in names if name in known)
    assert len(theirs) > 40
    assert [name for name in theirs if not runs_on_cuda(name)] == []
    # what the list has not: operations of the CPU alone, which the pretence lets run. A torch that is built for CUDA
    # tries attention without padding, too, which is made of the list's own
    assert sorted(names - set(theirs) - {"torch_attn._varlen_attn"}) == []


def test_more_micro_batches_make_no_more_waits(gpu: Watch) -> None:
    found = []
    for rows in (2, 16):
        study = Study("algo=ppo")
        study.policy.micro_batch_size = rows
        study.step(1)
        gpu.waits.clear()
        study.step(2)
        found.append(waits(gpu))
    assert found[0] == found[1]


@pytest.mark.parametrize("algo", ["ppo", "ppo critic=shared", "grpo"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_bfloat16_policy_and_reference_read_alike(algo: str, checkpointing: bool, gpu: Watch) -> None:
    """The KL to the reference at the first step is exactly 0, though one has float32 weights and the other has not."""
    study = Study(*f"algo={algo}".split(), dtype=torch.bfloat16, checkpointing=checkpointing)
    study.reference = lowered(study.reference, torch.bfloat16)
    assert study.reference.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert study.step(1)["train/kl"] == 0.0
    assert study.step(2)["train/kl"] != 0.0


def test_validation_on_a_gpu(gpu: Watch) -> None:
    study = Study("algo=ppo")
    asked = PromptSet([""] * 5, ["neutral"] * 5, [[3], [3, 4], [5], [4, 4, 4], [3]], 0)
    scorer = Scorer({"sevens": sevens}, {"sevens": 1.0})
    metrics, rows = validate(study.policy, study.reference, asked, scorer, {}, batch_size=3)
    assert len(rows) == 5
    assert metrics["val/kl"] == 0.0


def test_a_state_that_was_saved_goes_on_on_a_gpu(gpu: Watch) -> None:
    whole, half = Study("algo=ppo"), Study("algo=ppo")
    for study in (whole, half):
        study.step(1)
    again = Study("algo=ppo")
    for new, old in ((again.policy, half.policy), (again.critic, half.critic)):
        new.model.load_state_dict(old.model.state_dict())
        new.optimizer.load_state_dict(old.optimizer.state_dict())
    assert again.step(2) == whole.step(2)


def test_the_pretence_sees_what_a_gpu_refuses(gpu: Watch) -> None:
    there, here = torch.ones(2, 2, device="cuda"), torch.ones(2, 2)
    with pytest.raises(Refused):
        there @ here
    with pytest.raises(Refused):
        there + here
    gpu.capturing = True
    with pytest.raises(Refused, match="recorded"):
        there.nonzero()
    gpu.capturing = False
    assert on_gpu(there + 1)
    assert not gpu.waits
    float(there.sum())
    assert sum(gpu.waits.values()) == 1


def one_by_one(query, key, value, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa):
    """What `torch.nn.attention.varlen.varlen_attn` documents, sequence by sequence."""
    assert starts.dtype == torch.int32
    assert starts is starts_k
    assert all(on_gpu(x) for x in (query, key, value, starts))
    lengths = np.diff(starts.numpy()).tolist()  # a kernel reads them without the host
    assert sum(lengths) == len(query) == len(key) == len(value)
    assert longest == longest_k == max(lengths)
    assert window_size == (-1, 0)
    assert enable_gqa is (query.shape[1] != key.shape[1])
    found = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        q, k, v = (x.transpose(0, 1)[None].float() for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        found.append(out[0].transpose(0, 1).to(query.dtype))
    return torch.cat(found)


@pytest.fixture
def kernel(gpu: Watch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Attention over sequences of their own lengths, counted; a test may put a wrong one in its place."""
    calls: Counter[str] = Counter()

    def counted(*args, **more):
        calls["attention"] += 1
        return one_by_one(*args, **more)

    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(varlen, "varlen_attn", counted)
    tried = varlen.takes
    tried.cache_clear()
    yield calls
    tried.cache_clear()


def ragged(*, shared: bool) -> Rollout:
    """Four rollouts of different lengths; two prompts or four."""
    prompts, lengths = torch.tensor([3, 3, 1, 1] if shared else [3, 1, 4, 2]), torch.tensor([2, 5, 1, 3])
    group = torch.tensor([0, 0, 1, 1]) if shared else torch.arange(4)
    ids = torch.randint(1, 12, (4, 9), generator=torch.Generator().manual_seed(0))
    return Rollout(
        prompts=ids[group, :4], prompt_lengths=prompts, responses=ids[:, 4:], lengths=lengths,
        ended=torch.zeros(4, dtype=torch.bool), logprobs=torch.zeros(4, 5), group=group,
    ).to(GPU)  # fmt: skip


def read_with_gradients(model: Qwen2ForCausalLM, rollout: Rollout) -> list[torch.Tensor]:
    model.zero_grad()
    found = response_logprobs(model, rollout, temperature=1.0)[0]
    (found * found).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("shared", [False, True])
def test_attention_without_padding_gives_the_padded_ones_numbers(
    shared: bool, kernel: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rollout = tiny(0).to(GPU), ragged(shared=shared)
    monkeypatch.setattr(varlen, "takes", lambda *_: True)  # in float32 too, where numbers can be told apart
    apart = read_with_gradients(model, rollout)
    assert kernel["attention"] == 2 + 2  # layers: the gate's look at the model, and ours
    with differentiable_twice():
        padded = read_with_gradients(model, rollout)
    assert kernel["attention"] == 4
    for one, other in zip(apart, padded, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_attention_is_padded_where_the_kernel_is_wrong_or_absent(
    kernel: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (2, 1, 8, torch.bfloat16, GPU)
    assert varlen.takes(*kind)
    assert not varlen.takes(2, 1, 8, torch.float32, GPU)
    assert not varlen.takes(2, 1, 8, torch.bfloat16, torch.device("cpu"))
    for wrong in (lambda *args, **more: one_by_one(*args, **more) * 1.1, Refuses("no such heads")):
        monkeypatch.setattr(varlen, "varlen_attn", wrong)
        varlen.takes.cache_clear()
        assert not varlen.takes(*kind)


class Refuses(RuntimeError):
    def __call__(self, *args, **more):
        raise self


def test_a_step_with_attention_without_padding(kernel: Counter[str], gpu: Watch) -> None:
    study = Study("algo=grpo", "algo.group_size=4", "algo.epochs=1", "algo.minibatches=1", dtype=torch.bfloat16)
    study.reference = lowered(study.reference, torch.bfloat16)
    study.policy.micro_batch_size = COUNT
    assert study.step(1)["train/kl"] == 0.0
    assert kernel["attention"] == 1 + 3 * 2  # the trial; reference, policy and update, two layers each
    gpu.waits.clear()
    study.step(2)
    assert waits(gpu) <= WAITS + 1, gpu.waits


NO_KERNEL = {
    "view", "_unsafe_view", "transpose", "t", "split", "split_with_sizes", "slice", "select", "expand", "detach",
    "alias", "as_strided", "unsqueeze", "squeeze", "permute", "unbind", "_reshape_alias", "lift_fresh", "empty",
    "empty_like", "new_empty", "empty_strided", "new_empty_strided",
}  # fmt: skip
"""Operations that only look at memory, or ask for some."""


def launches(ops: Counter[str]) -> Counter[str]:
    """Kernels, by name. On a GPU a norm is one; here its six parts are seen."""
    found: Counter[str] = Counter()
    for op, count in ops.items():
        name = op.split(".")[1]
        if name not in NO_KERNEL:
            found[name] += count
    found["norm"] = found["rsqrt"]
    found.subtract(dict.fromkeys(("pow", "mean", "add", "rsqrt"), found["norm"]))
    found.subtract({"mul": 2 * found["norm"]})
    return +found


def test_kernels_of_a_decoded_token(gpu: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a captured step holds, layer by layer; with several heads of keys and values one more a layer."""
    totals = []
    for layers in (1, 3):
        monkeypatch.setattr(studies, "LAYERS", layers)
        tried = Study("algo=grpo", dtype=torch.bfloat16)
        step = cuda_graph_decode.CapturedStep(
            tried.actor, gate.way_of(tried.actor).decoder, sampling.draw, rows=8, columns=8, length=6,
            dtype=torch.bfloat16,
        )  # fmt: skip
        gpu.ops.clear()
        with torch.no_grad():
            step._token(8)
        totals.append(launches(gpu.ops).total())
    a_layer = (totals[1] - totals[0]) / 2
    assert (a_layer, totals[0] - a_layer) == (23, 50)


def test_weights_are_cast_once_an_update(gpu: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very numbers of casts that are made in each pass."""
    found, casts = [], []
    for keep in (True, False):
        if not keep:
            monkeypatch.setattr(forward, "keeps_casts", lambda *_: False)
        tried = Study("algo=ppo", "algo.epochs=1", "algo.minibatches=2", dtype=torch.bfloat16)
        tried.policy.micro_batch_size = 4
        gpu.ops.clear()
        found.append([tried.step(number) for number in (1, 2)])
        casts.append(launches(gpu.ops)["_to_copy"])
        found[-1].append([p.detach().clone() for p in tried.actor.parameters()])
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(one, other) for one, other in zip(found[0][2], found[1][2], strict=True))
    assert casts[1] - casts[0] > 250
