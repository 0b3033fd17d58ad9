"""What only a CUDA GPU can tell: `pytest -m gpu`, or `python scripts/gpu.py`. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from helpers.study import GPU, Study, tiny

from rlhf_cli.engine import varlen
from rlhf_cli.engine.load import lowered
from rlhf_cli.engine.read import response_logprobs
from rlhf_cli.engine.sample import sample
from rlhf_cli.rl.rollout import Prompts, Rollout
from rlhf_cli.runs.inspection import profiled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here"),
]
HOW = {"eos_ids": (0,), "pad_id": 0, "max_length": 12, "temperature": 0.9, "seed": 3, "step": 1}


def asked(count: int = 20) -> Prompts:
    ids = torch.randint(1, 12, (count, 5), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1 + i % 5 for i in range(count)])
    index = torch.arange(count)
    return Prompts(ids, lengths, index, index)


@pytest.mark.parametrize("graphs", [True, False])
def test_the_same_tokens_as_on_the_cpu(graphs: bool) -> None:
    here = sample(tiny(0), asked(), **HOW)
    model = tiny(0).to(GPU)
    for _ in range(2):  # the second rollout replays what the first has captured
        there = sample(model, asked().to(GPU), **HOW, cuda_graphs=graphs).to(torch.device("cpu"))
        assert there.responses.tolist() == here.responses.tolist()
        torch.testing.assert_close(there.logprobs, here.logprobs, atol=1e-4, rtol=0)


def test_the_same_log_probs_and_gradients_as_on_the_cpu() -> None:
    rollout = sample(tiny(0), asked(), **HOW)
    here, there = (differentiated(device, rollout) for device in (torch.device("cpu"), GPU))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def differentiated(device: torch.device, rollout: Rollout) -> list[torch.Tensor]:
    model = tiny(0).to(device)
    found = response_logprobs(model, rollout.to(device), temperature=0.9)[0]
    (found * found).sum().backward()
    return [x.detach().cpu() for x in (found, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize("heads", [(14, 2, 64), (12, 2, 128), (9, 3, 64)])
def test_attention_without_padding_is_right(heads: tuple[int, int, int]) -> None:
    """Qwen2.5's and SmolLM2's heads."""
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("FlashAttention needs an Ampere GPU or a later one")
    assert varlen.takes(*heads, torch.bfloat16, GPU)


@pytest.mark.parametrize("algo", ["ppo", "ppo critic=shared", "grpo", "trpo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps(algo: str, dtype: torch.dtype) -> None:
    study = Study(*f"algo={algo}".split(), dtype=dtype)
    study.reference = lowered(study.reference, dtype)
    first = study.step(1)
    assert first["train/kl"] == 0.0
    assert first["train/grad_norm"] > 0
    assert first["train/logprob_mismatch"] < (1e-3 if dtype == torch.float32 else 0.2)
    assert study.step(2)["train/kl"] != 0.0


def test_a_profile_is_of_the_gpu(tmp_path: Path) -> None:
    said: list[str] = []
    with profiled(True, tmp_path, said.append):
        torch.mm(torch.ones(400, 400, device=GPU), torch.ones(400, 400, device=GPU)).sum().item()
    assert any("gemm" in line or "nvjet" in line or "aten::mm" in line for line in said)
