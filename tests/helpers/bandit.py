"""`train_step` on a one-token task that a working algorithm solves in forty steps."""

from dataclasses import replace
from functools import partial

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.build.algo import algorithm
from rlhf_cli.commands.doctor import Numbers
from rlhf_cli.config.compose import plan
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.value_head import SharedCritic, ValueModel
from rlhf_cli.rewards.scorer import Scorer, Texts
from rlhf_cli.training.loop import train_step
from rlhf_cli.training.optimizer import Optimizer, Schedule
from rlhf_cli.training.policy import Critic, Generation, Policy
from rlhf_cli.training.rollouts import TrainingPrompts

CPU = Compute(torch.device("cpu"), torch.float32)
BEST = 5
"""The bandit's paying arm: a token."""


def config(*overrides: str):
    if "algo=grpo_iterative" in overrides:
        overrides = (*overrides, "algo.retrain_epochs=0")  # a fixed reward
    return plan("train", ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]


def tiny(kind=Qwen2ForCausalLM, **more):
    torch.manual_seed(0)
    made = Qwen2Config(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, tie_word_embeddings=False, initializer_range=0.1, **more,
    )  # fmt: skip
    return kind(made).eval()


def pays(texts: Texts) -> torch.Tensor:
    return torch.tensor([float(row == [BEST]) for row in texts.tokens])


PAYS = Scorer({"arm": pays}, {"arm": 1.0})


class Bandit:
    """`train_step` on a one-token task: one arm pays."""

    def __init__(self, *overrides: str, beta: float = 0.0, reward: Scorer = PAYS) -> None:
        self.reward = reward
        self.config = config(*overrides, f"algo.beta={beta}")
        algo = self.config.algo
        self.actor, self.reference = tiny(), tiny().requires_grad_(False)
        optimizer = partial(Optimizer, lr=0.01, schedule=Schedule(1))
        self.critic = Critic(SharedCritic(self.actor), None) if self.config.critic.name == "shared" else None
        head = self.critic.head_on_policy if self.critic else None
        if algo.needs_critic and not self.critic:
            values = ValueModel(tiny().model, 16)
            self.critic = Critic(values, optimizer(values), one_minibatch=algo.minibatches == 1)
        self.algorithm = algorithm(self.config)
        if self.algorithm.trust_region:
            self.algorithm = replace(self.algorithm, trust_region=replace(self.algorithm.trust_region, delta=0.05))
        self.algorithm = replace(self.algorithm, refill_tries=0, ptx=0.0)
        self.policy = Policy(
            model=self.actor,
            tokenizer=Numbers(),
            optimizer=optimizer(self.actor, also=list(head.parameters()) if head else []),
            generation=Generation((0,), 0, max_length=1),
            compute=CPU,
            micro_batch_size=64,
        )

    def step(self, number: int, count: int = 64) -> dict[str, float]:
        size = self.algorithm.group_size
        prompts = PromptSet([""] * (count // size), ["neutral"] * (count // size), [[3, 3]] * (count // size), 0)
        data = TrainingPrompts(prompts, count, size)
        algo = self.algorithm
        metrics, rollouts = train_step(self.policy, self.reference, self.critic, data, self.reward, algo, number)
        self.rollout = rollouts.rollout
        return metrics

    def chance(self) -> float:
        """π(best)."""
        with torch.no_grad():
            return float(self.actor(torch.full((1, 2), 3)).logits[0, -1].softmax(-1)[BEST])
