"""A tiny random Qwen2 and rollouts of it."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.engine.sample import sample
from rlhf_cli.rl.rollout import Prompts, Rollout

EOS = (0, 1)


def born(config: Qwen2Config) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for vector in (p for p in made.parameters() if p.ndim == 1):
            vector += 0.3 * torch.randn_like(vector)  # norms are born as ones and biases as zeros
    return made


def prompts(lengths: list[int], width: int) -> Prompts:
    rows = [[2] * (width - n) + [(7 * i + 3 * j) % 38 + 2 for j in range(n)] for i, n in enumerate(lengths)]
    count = len(lengths)
    return Prompts(torch.tensor(rows), torch.tensor(lengths), torch.arange(count), torch.arange(count))


def roll(model: Qwen2ForCausalLM, given: Prompts, **options: int) -> Rollout:
    arguments = {"max_length": 16, "seed": 3, "step": 5} | options
    return sample(model, given, eos_ids=EOS, pad_id=0, temperature=0.9, **arguments)
