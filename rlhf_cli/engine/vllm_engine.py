"""Responses sampled by vLLM, in this process, on the policy's own GPU (an extra: `rlhf[vllm]`).

vLLM keeps a copy of the weights, given to it anew before each rollout; while the policy learns it sleeps and holds no
memory. Of its interface only what its documentation shows is used: LLM, SamplingParams, TokensPrompt, and the worker's
`reload_weights` (docs.vllm.ai: offline inference, sleep mode, layerwise reloading). Its log-probs are reported beside
ours, never learned from: kernels and rounding differ.

Left out: a vLLM of its own machine or of several GPUs, and its LoRA (it gets the sums).
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.config.errors import RunFailed, UserError
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.lora import summed_weights
from rlhf_cli.engine.memory import make_room
from rlhf_cli.engine.read import response_logprobs
from rlhf_cli.rl.randomness import uniforms
from rlhf_cli.rl.rollout import Prompts, Rollout

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are handed over, not sent
    "VLLM_NO_USAGE_STATS": "1",  # it would report the machine and the model to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Of its environment, where the user has set nothing."""

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
ROWS, LIMIT = 8, {torch.float32: 0.01, torch.bfloat16: 0.2}
"""Of the first rollout these rows are read again: nats a token, on average, that vLLM's log-probs may be off."""


def check_vllm(where: Compute) -> None:
    """Raises UserError where vLLM cannot sample for this run; loads nothing."""
    if find_spec("vllm") is None:
        raise UserError(
            'rollout.engine=vllm: vLLM is not installed here. pip install "rlhf[vllm]", or rollout.engine=native'
        )
    if distributed.world() > 1:
        raise UserError("rollout.engine=vllm samples in one process: start without torchrun, or rollout.engine=native")
    if where.device.index:
        raise UserError(
            f"rollout.engine=vllm samples on this process's first GPU: CUDA_VISIBLE_DEVICES={where.device.index} "
            f"rlhf … device=cuda instead of device={where.device}"
        )


class VllmEngine:
    """Samples as `sample.sample` does. `context`: tokens that a prompt and its response may have; `memory`: share of
    the GPU's memory that vLLM may take while it samples. vLLM starts with the first rollout."""

    def __init__(self, where: Compute, *, context: int, memory: float, notify: Callable[[str], None] = print) -> None:
        self.where, self.context, self.memory, self.notify = where, context, memory, notify
        self._llm: Any = None
        self._compared = False

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        prompts: Prompts,
        *,
        eos_ids: tuple[int, ...],
        pad_id: int,
        max_length: int,
        temperature: float,
        seed: int,
        step: int,
    ) -> Rollout:
        """One response a row from the full softmax, until an EOS token or `max_length`.

        Which tokens are drawn depends on (seed, step, rollout index) and, in the last digits of a probability, on what
        shares a batch. Raises RunFailed where vLLM does not start, or where its log-probs are not the model's.
        """
        asked = [row[-n:] for row, n in zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)]
        how = {"max_tokens": max_length, "temperature": temperature, "stop_token_ids": list(eos_ids)}
        self._wake(model, max(map(len, asked)) + max_length)
        drawn = self._generate(asked, how, request_seeds(seed, step, prompts.index).tolist())
        if self.where.device.type == "cuda":
            self._llm.sleep(level=2)  # without weights, which come anew
        rollout = as_rollout(prompts, *drawn, eos_ids=eos_ids, pad_id=pad_id)
        if not self._compared:
            self._compare(model, rollout, temperature)
        return rollout

    def _wake(self, model: Any, needed: int) -> None:
        """Start vLLM, or wake it up, and give it the weights as they are now."""
        gpu = self.where.device.type == "cuda"
        if gpu:
            make_room()  # vLLM asks the device for memory, not torch's cache
        if self._llm is None:
            self.context = max(self.context, needed)
            self._llm = self._start(model)
        elif gpu:
            self._llm.wake_up(tags=["weights"])
        if needed > self.context:
            raise RunFailed(f"vLLM was started for {self.context} tokens, and a prompt with its response has {needed}")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint_weights(model)})
        if gpu:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # what was read with the weights of before

    def _start(self, model: Any) -> Any:
        """An LLM of the model's shape; its weights come later, so it loads no file but a config."""
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.tie_word_embeddings = False  # vLLM reloads no tied head: on a CPU it has a packed copy of its own
        self.notify(f"starting vLLM for prompts and responses of at most {self.context} tokens")
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            try:
                return LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    generation_config="vllm",  # nothing of a model's own
                    dtype="bfloat16" if self.where.dtype == torch.bfloat16 else "float32",
                    max_model_len=self.context,
                    gpu_memory_utilization=self.memory,
                    enable_sleep_mode=self.where.device.type == "cuda",
                    logprobs_mode="processed_logprobs",  # at the temperature
                    seed=0,
                )
            except Exception as error:  # whatever its layers raise, the run ends here
                raise RunFailed(
                    f"vLLM does not start here: {type(error).__name__}: {error}\n  Go on without: rollout.engine=native"
                ) from error

    def _generate(
        self, asked: list[list[int]], how: dict[str, Any], seeds: list[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """(tokens, their log-probs) of each row."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        full = {"n": 1, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        # `ignore_eos`: only the ids that we name end a response; `logprobs=0`: of the drawn token alone
        shared = full | how | {"ignore_eos": True, "logprobs": 0, "detokenize": False}
        wishes = [SamplingParams(seed=number, **shared) for number in seeds]
        rows = [TokensPrompt(prompt_token_ids=ids) for ids in asked]
        found = [output.outputs[0] for output in self._llm.generate(rows, wishes, use_tqdm=False)]
        tokens = [list(each.token_ids) for each in found]
        numbers = [
            [at[token].logprob for at, token in zip(each.logprobs, ids, strict=True)]
            for each, ids in zip(found, tokens, strict=True)
        ]
        return tokens, numbers

    def _compare(self, model: Any, rollout: Rollout, temperature: float) -> None:
        """Once: whether vLLM computes this model at all. Raises RunFailed where it does not."""
        some = rollout.select(slice(0, ROWS)).trimmed()
        ours = response_logprobs(model, some, temperature=temperature)[0]
        off = float(((ours - some.logprobs).abs() * some.mask).sum() / some.lengths.sum())
        limit = LIMIT.get(self.where.dtype, LIMIT[torch.float32])
        if not off <= limit:
            raise RunFailed(
                f"vLLM gives this {model.config.model_type} model other log-probs than its own forward: {off:.2g} nats "
                f"a token (at most {limit:g} is rounding). Use rollout.engine=native"
            )
        self._compared = True
        self.notify(f"vLLM samples; its log-probs are {off:.1e} nats a token off")


def request_seeds(seed: int, step: int, index: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """A request's seed: a function of where its random numbers are used, as `randomness.uniforms`."""
    return (uniforms(seed, step, index, 0) * 2**53).long()


def checkpoint_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in a checkpoint, tensor), layer by layer, adapters added; the head also where it is the embedding's."""
    weights = summed_weights(model, dict(model.named_parameters()))
    for name, weight in weights.items():
        yield name, weight.detach()
    if HEAD not in weights and TABLE in weights:
        yield HEAD, weights[TABLE].detach()


def as_rollout(
    prompts: Prompts, tokens: list[list[int]], logprobs: list[list[float]], *, eos_ids: tuple[int, ...], pad_id: int
) -> Rollout:
    """Rows of different lengths as a record; an EOS token belongs to its response."""
    device, longest = prompts.ids.device, max(map(len, tokens))
    responses = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in tokens])
    numbers: Float[Tensor, "B R"] = torch.tensor([row + [0.0] * (longest - len(row)) for row in logprobs])
    return Rollout(
        prompts=prompts.ids,
        prompt_lengths=prompts.lengths,
        responses=responses.to(device),
        lengths=torch.tensor([len(ids) for ids in tokens]),
        ended=torch.tensor([ids[-1] in eos_ids for ids in tokens]),
        logprobs=numbers.to(device),
        group=prompts.group,
    )
