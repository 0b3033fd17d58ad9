"""A `vllm` of the interface that rlhf uses, which samples with transformers on the CPU.

Stricter than vLLM where that helps: an argument that it does not know, a weight that is missing or unknown, and work
asked of it while it sleeps raise. `off` is added to every log-prob, as another program's kernels would.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, TypedDict

import pytest
import torch


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass(frozen=True)
class SamplingParams:
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    detokenize: bool


class LLM:
    made: ClassVar[list[Any]] = []
    off = 0.0

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        load_format: str,
        generation_config: str,
        dtype: str,
        max_model_len: int,
        gpu_memory_utilization: float,
        enable_sleep_mode: bool,
        logprobs_mode: str,
        seed: int,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        assert (skip_tokenizer_init, load_format, generation_config) == (True, "dummy", "vllm")
        assert logprobs_mode == "processed_logprobs"
        assert "architectures" in json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        self.context, self.given = max_model_len, {"sleeps": enable_sleep_mode, "dtype": dtype}
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        self.asleep: set[str] = set()
        self.calls: list[str] = []
        self.asked: list[SamplingParams] = []
        LLM.made.append(self)

    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        assert "weights" not in self.asleep, "it sleeps"
        self.calls.append(method)
        weights = dict(kwargs["weights_iterator"])
        own = dict(self.model.named_parameters(remove_duplicate=False))
        assert weights.keys() == own.keys(), weights.keys() ^ own.keys()
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        return [None]

    def sleep(self, level: int) -> None:
        assert self.given["sleeps"]
        self.calls.append(f"sleep {level}")
        self.asleep = {"weights", "kv_cache"}
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.fill_(torch.nan)

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")
        self.asleep -= {*tags}

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        assert not self.asleep, "it sleeps"
        self.calls.append("generate")
        self.asked += sampling_params
        return [self._one(p["prompt_token_ids"], how) for p, how in zip(prompts, sampling_params, strict=True)]

    @torch.no_grad()
    def _one(self, prompt: list[int], how: SamplingParams) -> Any:
        assert (how.n, how.top_p, how.top_k, how.min_p, how.repetition_penalty) == (1, 1.0, -1, 0.0, 1.0)
        assert (how.ignore_eos, how.logprobs, how.detokenize) == (True, 0, False)
        assert len(prompt) + how.max_tokens <= self.context
        generator, ids = torch.Generator().manual_seed(how.seed), list(prompt)
        told: list[dict[int, Any]] = []
        while len(told) < how.max_tokens:
            logits = self.model(torch.tensor([ids])).logits[0, -1].float() / how.temperature
            ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
            told.append({ids[-1]: SimpleNamespace(logprob=float(logits.log_softmax(-1)[ids[-1]]) + self.off)})
            if ids[-1] in how.stop_token_ids:
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=told)])


def install(patch: pytest.MonkeyPatch) -> type[LLM]:
    """Let `import vllm` find this one."""
    from importlib.machinery import ModuleSpec

    made, inputs = ModuleType("vllm"), ModuleType("vllm.inputs")
    made.LLM, made.SamplingParams, made.__spec__ = LLM, SamplingParams, ModuleSpec("vllm", None)  # type: ignore[attr-defined]
    inputs.TokensPrompt = TokensPrompt  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "vllm", made)
    patch.setitem(sys.modules, "vllm.inputs", inputs)
    patch.setattr(LLM, "made", [])
    patch.setattr(LLM, "off", 0.0)
    return LLM
