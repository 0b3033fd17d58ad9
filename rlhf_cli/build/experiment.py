"""From a checked config to models, data, rewards and the algorithm."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.build.algo import algorithm
from rlhf_cli.build.paths import critic_path, model_path
from rlhf_cli.build.prompt_data import balanced, check_fit, prefixes, pretraining
from rlhf_cli.build.rewards import continual, gold_judges, scorer
from rlhf_cli.build.rows import rows_of_a_pass
from rlhf_cli.config.schema import Config
from rlhf_cli.data.prompts import PromptSet, Template
from rlhf_cli.engine import processes
from rlhf_cli.engine.device import Compute, bf16_gain, compute
from rlhf_cli.engine.dropout import learns_in_eval_mode
from rlhf_cli.engine.gate import way_of
from rlhf_cli.engine.load import eos_ids, load_actor, load_critic, load_tokenizer, lowered
from rlhf_cli.engine.lora import adapters_of, attach, without_adapters
from rlhf_cli.engine.memory import Memory
from rlhf_cli.engine.value_head import SharedCritic, checkpoint_activations, restore_head
from rlhf_cli.engine.vllm_engine import VllmEngine, check_vllm
from rlhf_cli.evaluation.user_metrics import Metrics, user_metrics
from rlhf_cli.preferences.continual import Continual
from rlhf_cli.rewards.scorer import Score, Scorer
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.training.adamw8 import check_8bit
from rlhf_cli.training.loop import train_step
from rlhf_cli.training.optimizer import Optimizer, Schedule
from rlhf_cli.training.outer import OuterLoop
from rlhf_cli.training.policy import Critic, Generation, Policy, models
from rlhf_cli.training.rollouts import Rollouts, TrainingPrompts


@dataclass(frozen=True)
class Experiment:
    """Models, data, rewards and algorithm of one config."""

    policy: Policy
    reference: Any
    critic: Critic | None
    data: TrainingPrompts
    test: PromptSet
    reward: Scorer
    gold: dict[str, Score]
    """The judges that are not trained on, by name; the first is val/gold_score. Empty: none."""
    algo: Algorithm
    metrics: Metrics = field(default_factory=dict)
    """Of the user's own, at validations."""
    outer: OuterLoop | None = None
    """Of an iterative algorithm."""

    @property
    def compute(self) -> Compute:
        return self.policy.compute

    def step(self, step: int) -> tuple[dict[str, float], Rollouts]:
        """`train_step` with what is here."""
        return train_step(self.policy, self.reference, self.critic, self.data, self.reward, self.algo, step)


@dataclass(frozen=True)
class Saved:
    """Folders of a checkpoint to start from instead of the config's models; None: the config's."""

    actor: str | None = None
    critic: str | None = None
    reference: str | None = None
    reward_model: str | None = None

    @staticmethod
    def of(checkpoint: Path | None, config: Config) -> "Saved":
        """Those that a checkpoint of this config holds."""
        if checkpoint is None:
            return Saved()
        algo = config.algo
        return Saved(
            actor=str(checkpoint / "actor"),
            critic=str(checkpoint / "critic") if algo.needs_critic else None,
            reference=str(checkpoint / "reference") if algo.steps_per_iteration else None,
            reward_model=str(checkpoint / "reward_model") if algo.retrain_epochs else None,
        )


NOTHING_SAVED = Saved()


def make_experiment(
    config: Config, notify: Callable[[str], None], *, saved: Saved = NOTHING_SAVED, learns: bool = True
) -> Experiment:
    """Load everything. `learns`: with a critic, which an evaluation does not need; optimizers come with `to_learn`."""
    torch.manual_seed(config.seed)
    where, algo = compute(config.device, config.precision), algorithm(config)
    if config.rollout.engine == "vllm":
        check_vllm(where)
    if learns and config.optim.name == "adamw_8bit":
        check_8bit()
    warn_of_bf16(where, notify)
    metrics = user_metrics(config.val.metrics)
    base = model_path(config.actor, config, notify)
    reward, learned = scorer(config, where, notify, learned_path=saved.reward_model)
    rows = prefixes(config, where, notify)
    notify("loading models")
    tokenizer = load_tokenizer(base)
    actor = load_actor(saved.actor or base, device=where.device)
    wanted = config.actor.lora
    if wanted is not None and wanted.rank and adapters_of(actor) is None:
        attach(actor, rank=wanted.rank, alpha=wanted.alpha, targets=wanted.targets, base=base)
    reference = reference_of(actor, base, saved, where)
    values = value_model(config, actor, base, where, notify, saved) if learns and config.algo.needs_critic else None
    say_way(actor, notify)
    for model in (actor, values):
        if model is not None and config.optim.gradient_checkpointing:
            checkpoint_activations(model)
    generation = how_to_generate(config, actor, tokenizer)
    template = Template(config.prompt.name, config.prompt.system, config.prompt.user, config.prompt.escape)
    if template.fitted(tokenizer) is not template:
        notify("the chat template has no system role: prompt.system stands at the start of the user turn")
    train = PromptSet.make(rows["train"], template, tokenizer, pad_id=generation.pad_id)
    test = PromptSet.make(balanced(rows["test"], config.val.prompts), template, tokenizer, pad_id=generation.pad_id)
    check_fit(actor, [*train.ids, *test.ids], config.rollout.max_response_length)
    policy = Policy(
        model=actor,
        tokenizer=tokenizer,
        optimizer=None,
        generation=generation,
        compute=where,
        micro_batch_size=rows_of_a_pass(config, actor, values, [*train.ids, *test.ids], where, notify),
        memory=Memory(notify),
        mix=pretraining(config, tokenizer, set(rows["test"]["review"])),
        engine=sampler(config, where, [*train.ids, *test.ids], notify),
    )
    return Experiment(
        policy=policy,
        reference=reference,
        critic=None if values is None else Critic(values, None),
        data=TrainingPrompts(
            train, config.rollout.batch_size, config.algo.group_size, config.seed, one_batch=config.data.one_batch
        ),
        test=test,
        reward=reward,
        gold=gold_judges(config, where, notify),
        metrics=metrics,
        algo=algo,
        outer=outer_loop(config, continual(config, learned, where, notify)),
    )


def reference_of(actor: Any, base: str, saved: Saved, where: Compute) -> Any:
    """What the KL is to: the actor without its adapters, a copy of it, or a checkpoint's own; frozen."""
    if adapters_of(actor) is not None:
        return without_adapters(actor)
    same = not (saved.actor or saved.reference)
    reference = copy.deepcopy(actor) if same else load_actor(saved.reference or base, device=where.device)
    return lowered(reference.requires_grad_(False), where.dtype)


def value_model(
    config: Config, actor: Any, base: str, where: Compute, notify: Callable[[str], None], saved: Saved
) -> Any:
    """A value head on the actor's trunk, or on one of its own; its head is a checkpoint's, or starts at 0."""
    if config.critic.name == "shared":
        model: Any = SharedCritic(actor)
    else:
        model = load_critic(saved.critic or critic_path(config, base, notify), device=where.device)
    if saved.critic:
        restore_head(model, saved.critic)
    return model


def outer_loop(config: Config, continual: Continual | None) -> OuterLoop | None:
    steps = config.algo.steps_per_iteration
    return OuterLoop(steps, config.algo.group_size, continual) if steps else None


def to_learn(experiment: Experiment, config: Config) -> Experiment:
    """The experiment with optimizers, its models sharded over the processes with `shard`. A collective call: all
    processes make it together."""
    optim, policy, critic = config.optim, experiment.policy, experiment.critic
    if config.shard:
        for model in models(policy, critic, experiment.reference):
            processes.shard(model, policy.compute.device)
    head = critic.head_on_policy if critic else None
    make = partial(
        Optimizer,
        schedule=Schedule(config.steps, optim.warmup_steps, optim.schedule),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        eight_bit=optim.name == "adamw_8bit",
    )
    also = list(head.parameters()) if head is not None else []
    optimizer = make(policy.model, lr=optim.actor_lr, also=also, also_lr=optim.value_head_lr)
    policy = replace(policy, optimizer=optimizer)
    if critic is not None and head is None:
        once = config.algo.minibatches == 1 and not optim.gradient_checkpointing
        critic = Critic(critic.model, make(critic.model, lr=optim.critic_lr), one_minibatch=once)
    return replace(experiment, policy=policy, critic=critic)


def how_to_generate(config: Config, actor: Any, tokenizer: Any) -> Generation:
    ends, rollout = eos_ids(actor, tokenizer), config.rollout
    return Generation(
        eos_ids=ends,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
        max_length=rollout.max_response_length,
        temperature=rollout.temperature,
        micro_batch_size=rollout.micro_batch_size,
        seed=config.seed,
        cuda_graphs=rollout.cuda_graphs,
    )


def sampler(
    config: Config, where: Compute, prompts: list[list[int]], notify: Callable[[str], None]
) -> VllmEngine | None:
    """What samples these prompts, if not rlhf itself."""
    rollout = config.rollout
    if rollout.engine == "native":
        return None
    context = max(map(len, prompts)) + rollout.max_response_length
    return VllmEngine(where, context=context, memory=rollout.vllm_memory, notify=notify)


def warn_of_bf16(where: Compute, notify: Callable[[str], None]) -> None:
    """A line where bfloat16 was asked for on a CPU whose products are slower in it."""
    lowered_here = where.device.type == "cpu" and where.dtype == torch.bfloat16
    if lowered_here and (gain := bf16_gain(rounding=True)) < 1:
        notify(f"precision=bf16: products take {1 / gain:.1f} times as long as in fp32 on this CPU: try precision=fp32")


def say_way(policy: Any, notify: Callable[[str], None]) -> None:
    """A line for a model that takes the plain way."""
    if (way := way_of(policy)).decoder is None:
        notify(f"the actor takes the {way}")
    if learns_in_eval_mode(policy):
        notify(
            "its dropout cannot be switched off in train mode: it learns in eval mode, without gradient checkpointing"
        )
