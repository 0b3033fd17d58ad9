"""Batches of scored rollouts: sample, score, resample groups whose rewards are all equal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rlhf_cli.data.prompts import PromptSet, response_texts
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.sample import sample
from rlhf_cli.rewards.process import increments
from rlhf_cli.rewards.scorer import Rewards, Scorer, Texts
from rlhf_cli.rl.advantages import constant_groups
from rlhf_cli.rl.rollout import Prompts, Rollout, concatenate
from rlhf_cli.training.clock import phase
from rlhf_cli.training.policy import Policy

FAR = 1_000_003
"""Offset in steps between refill rounds: they draw prompts that no training step draws."""


@dataclass(frozen=True)
class TrainingPrompts:
    """Prompts by step, each `group_size` times in a row; which ones is a pure function of (seed, step)."""

    prompts: PromptSet
    batch_size: int
    """Rollouts a step: prompts × group_size."""
    group_size: int = 1
    seed: int = 0
    one_batch: bool = False
    """Every step has the prompts of the first one."""

    def draw(self, step: int, round_: int = 0) -> tuple[Prompts, list[int]]:
        """(a step's prompts, the row of the prompt set of each); `round_` > 0: those of a refill round."""
        at = 1 if self.one_batch else step
        chosen = self.prompts.batch(at + round_ * FAR, count=self.batch_size // self.group_size, seed=self.seed)
        drawn = self.prompts.prompts(chosen, group_size=self.group_size)
        moved = replace(
            drawn, index=drawn.index + round_ * self.batch_size, group=drawn.group + round_ * self.batch_size
        )
        return moved, [i for i in chosen for _ in range(self.group_size)]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """A batch of rollouts with their texts and rewards."""

    rollout: Rollout
    texts: Texts
    rewards: Rewards
    groups_drawn: int = 0
    """Groups that were sampled for them, refills included."""

    def __len__(self) -> int:
        return len(self.rollout)

    def select(self, rows: Tensor) -> "Rollouts":
        return Rollouts(self.rollout.select(rows), self.texts.select(rows), self.rewards.select(rows))

    @staticmethod
    def join(pieces: "list[Rollouts]", pad_id: int) -> "Rollouts":
        return Rollouts(
            concatenate([p.rollout for p in pieces], pad_id),
            Texts.join([p.texts for p in pieces]),
            Rewards.join([p.rewards for p in pieces]),
        )


def collect(policy: Policy, data: TrainingPrompts, reward: Scorer, step: int, *, refill_tries: int = 0) -> Rollouts:
    """A batch of scored rollouts.

    `refill_tries`: how often groups whose rewards are all equal are replaced by groups of other prompts (DAPO, Yu et
    al. 2025, sec. 3.2); then the batch is filled up with the groups that there are.
    """
    first = _drawn(policy, data, reward, step, 0)
    groups = data.batch_size // data.group_size
    if not refill_tries:
        return replace(first, groups_drawn=groups)
    kept: list[Rollouts] = []
    spare: list[Rollouts] = []
    found = first
    for round_ in range(refill_tries + 1):
        found = found if round_ == 0 else _drawn(policy, data, reward, step, round_)
        flat = constant_groups(found.rewards.reward, found.rollout.group)
        kept.append(found.select((~flat).nonzero().squeeze(1)))
        spare.append(found.select(flat.nonzero().squeeze(1)))
        if sum(map(len, kept)) >= data.batch_size:
            break
    whole = Rollouts.join([piece for piece in [*kept, *spare] if len(piece)], policy.generation.pad_id)
    chosen = whole.select(torch.arange(data.batch_size))
    return replace(chosen, rollout=chosen.rollout.trimmed(), groups_drawn=(round_ + 1) * groups)


def _drawn(policy: Policy, data: TrainingPrompts, reward: Scorer, step: int, round_: int) -> Rollouts:
    prompts, rows = data.draw(step, round_)
    rollout = generate(policy, prompts, step=step)
    with phase("score"):
        texts = policy.texts(rollout, data.prompts, rows)
        return Rollouts(rollout, texts, score(reward, policy, texts, rollout.lengths))


def score(reward: Scorer, policy: Policy, texts: Texts, lengths: Tensor | None = None) -> Rewards:
    """Each process scores its share. `lengths`: of the responses, for the overlong penalty."""
    share = torch.arange(len(texts.responses))[distributed.share(len(texts.responses))]
    mine, limit = texts.select(share), policy.generation.max_length
    its = None if lengths is None else lengths[share]
    return Rewards.join(distributed.gather(distributed.all_or_none(lambda: reward(mine, lengths=its, limit=limit))))


def early_rewards(reward: Scorer, policy: Policy, rollouts: Rollouts) -> Tensor | None:
    """Per-token rewards before the last token, [B, R]; None where the whole score is paid at the end."""
    if not reward.every_tokens:
        return None
    rollout = rollouts.rollout
    width, prompts = rollout.responses.shape[1], rollout.prompts.cpu()
    asked = [row[-n:].tolist() for row, n in zip(prompts, rollout.prompt_lengths.tolist(), strict=True)]

    def decode(rows: list[int], tokens: list[list[int]]) -> list[str]:
        return response_texts(policy.tokenizer, [asked[i] for i in rows], tokens)

    with phase("score"):
        paid = increments(reward.paid, rollouts.texts, decode, every=reward.every_tokens, width=width)
    return paid.to(policy.compute.device)


@phase("rollout")
def generate(policy: Policy, prompts: Prompts, *, step: int, micro_batch_size: int | None = None) -> Rollout:
    """Sample a response to each prompt, each process its share; fewer at a time where memory runs out."""
    wanted = micro_batch_size or policy.generation.micro_batch_size
    if policy.engine is None:
        # a captured CUDA graph would hold sharded weights unsharded on every process
        graphs = policy.generation.cuda_graphs and not distributed.is_split(policy.model)
        sampler: Callable[..., Rollout] = partial(sample, cuda_graphs=graphs)
    else:
        wanted, sampler = len(prompts), policy.engine.sample  # it divides a batch by itself
    with distributed.put_together(policy.model):
        sampled = policy.memory.fit("sampling", wanted, partial(_generate, policy, prompts, step, sampler))
    if distributed.world() > 1:
        gathered = distributed.gather(sampled.to(torch.device("cpu")))
        sampled = concatenate(gathered, policy.generation.pad_id).to(policy.compute.device)
    return sampled.trimmed()


def _generate(policy: Policy, prompts: Prompts, step: int, sampler: Callable[..., Rollout], rows: int) -> Rollout:
    """`rows` at a time."""
    how, mine, pieces = policy.generation, distributed.share(len(prompts)), []
    for at in range(mine.start, mine.stop, rows):
        with policy.compute.autocast():
            pieces.append(
                sampler(
                    policy.model,
                    prompts.select(slice(at, min(at + rows, mine.stop))).to(policy.compute.device),
                    eos_ids=how.eos_ids,
                    pad_id=how.pad_id,
                    max_length=how.max_length,
                    temperature=how.temperature,
                    seed=how.seed,
                    step=step,
                )
            )
    return concatenate(pieces, how.pad_id)
