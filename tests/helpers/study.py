"""A tiny policy, its reference and critic on a GPU, real or pretended, and `train_step` on them."""

from dataclasses import replace
from functools import partial

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from helpers.bandit import config
from rlhf_cli.build.algo import algorithm
from rlhf_cli.commands.doctor import Numbers
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.value_head import SharedCritic, ValueModel, checkpoint_activations
from rlhf_cli.rewards.scorer import Scorer, Texts
from rlhf_cli.training.loop import train_step
from rlhf_cli.training.optimizer import Optimizer, Schedule
from rlhf_cli.training.policy import Critic, Generation, Policy
from rlhf_cli.training.rollouts import TrainingPrompts

GPU = torch.device("cuda", 0)
LAYERS = 2
COUNT = 16


def sevens(texts: Texts) -> torch.Tensor:
    return torch.tensor([float(row.count(7)) for row in texts.tokens])


class Study:
    """`config`, and the objects that it names."""

    def __init__(self, *overrides: str, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> None:
        self.config = config(*overrides)
        self.actor, self.reference = tiny(0).to(GPU), tiny(0).to(GPU).requires_grad_(False)
        self.algorithm = replace(algorithm(self.config), refill_tries=0, ptx=0.0)
        optimizer = partial(Optimizer, lr=0.01, schedule=Schedule(1))
        self.critic = Critic(SharedCritic(self.actor), None) if self.config.critic.name == "shared" else None
        if self.config.algo.needs_critic and self.critic is None:
            values = ValueModel(tiny(1).model, 16).to(GPU)
            self.critic = Critic(values, optimizer(values), one_minibatch=self.algorithm.minibatches == 1)
        head = self.critic.head_on_policy if self.critic else None
        if checkpointing:
            checkpoint_activations(self.actor)
        self.policy = Policy(
            model=self.actor,
            tokenizer=Numbers(),
            optimizer=optimizer(self.actor, also=list(head.to(GPU).parameters()) if head else []),
            generation=Generation((0,), 0, max_length=6, micro_batch_size=COUNT),
            compute=Compute(GPU, dtype),
            micro_batch_size=4,
        )

    def step(self, number: int) -> dict[str, float]:
        size = self.algorithm.group_size
        count = COUNT // size
        asked = [[3, 4, 5][: 1 + i % 3] for i in range(count)]
        data = TrainingPrompts(PromptSet([""] * count, ["neutral"] * count, asked, 0), COUNT, size)
        scorer = Scorer({"sevens": sevens}, {"sevens": 1.0})
        return train_step(self.policy, self.reference, self.critic, data, scorer, self.algorithm, number)[0]


def tiny(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=12, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=16, tie_word_embeddings=True, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
