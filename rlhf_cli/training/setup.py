"""From a checked config to the things a run works with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.data.lexicon import vader_labels
from rlhf_cli.data.prompts import PromptSet, Template, response_texts
from rlhf_cli.data.reviews import Sentiment
from rlhf_cli.engine.dropout import learns_in_eval_mode
from rlhf_cli.engine.gate import way_of
from rlhf_cli.engine.load import context_length, eos_ids, load_actor, load_critic, load_tokenizer
from rlhf_cli.engine.memory import Memory
from rlhf_cli.engine.value_head import SharedCritic, checkpoint_activations, restore_head
from rlhf_cli.rewards.classifier import Classifier
from rlhf_cli.rewards.process import increments
from rlhf_cli.rewards.scorer import Score, Scorer, Texts
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.rollout import Rollout
from rlhf_cli.training.compute import Compute, compute
from rlhf_cli.training.continual import Continual
from rlhf_cli.training.places import classifier_path, critic_path, kept_in, model_path
from rlhf_cli.training.pretraining import Pretraining
from rlhf_cli.training.rewards import continual, scorer, source


@dataclass
class Lab:
    """Models, data and rewards of one experiment."""

    config: Config
    compute: Compute
    actor: Any
    tokenizer: Any
    reference: Any
    critic: Any | None
    scorer: Scorer
    train: PromptSet
    test: PromptSet
    eos: tuple[int, ...]
    pretraining: Pretraining | None = None
    continual: Continual | None = None
    gold: Score | None = None
    """The judge that is not trained on."""
    memory: Memory = field(default_factory=Memory)

    @property
    def pad(self) -> int:
        return pad_id(self.tokenizer, self.eos)

    def texts(self, rollout: Rollout, prompts: PromptSet, chosen: list[int]) -> Texts:
        """The text of a rollout; `chosen` names the prompt of each row."""
        tokens = [
            [t for t in row[:length].tolist() if t not in self.eos]
            for row, length in zip(rollout.responses.cpu(), rollout.lengths.tolist(), strict=True)
        ]
        decode = self.tokenizer.batch_decode
        return Texts(
            prefixes=[prompts.prefixes[i] for i in chosen],
            prompts=decode([prompts.ids[i] for i in chosen], skip_special_tokens=True),
            responses=response_texts(self.tokenizer, [prompts.ids[i] for i in chosen], tokens),
            tokens=tokens,
        )

    def paid(self, rollout: Rollout, texts: Texts) -> torch.Tensor | None:
        """What of the scores is paid before the end, [B, R]; None where all is paid there."""
        every = self.config.reward.every_tokens
        if not every:
            return None
        decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
        width = rollout.responses.shape[1]
        return increments(self.scorer.score, texts, decode, every=every, width=width).to(self.compute.device)


def pad_id(tokenizer: Any, eos: tuple[int, ...]) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]


def algorithm(config: Config) -> Algorithm:
    algo = config.algo
    return Algorithm(
        advantage=algo.advantage,
        baseline=algo.baseline,
        reward_to_go=algo.reward_to_go,
        surrogate=algo.surrogate,
        kl=algo.kl,
        kl_estimator=algo.kl_estimator,
        kl_direction=algo.kl_direction,
        aggregation=algo.aggregation,
        group_scale=algo.group_scale,
        whiten=algo.whiten,
        epsilon=algo.epsilon,
        epsilon_high=algo.epsilon_high,
        beta_old_direction=algo.beta_old_direction,
        gamma=algo.gamma,
        lam=algo.lam,
        value_target=algo.value_target,
        value_clip=algo.value_clip,
        entropy=algo.entropy,
        max_length=config.rollout.max_response_length,
    )


def pretraining(config: Config, tokenizer: Any, tested: set[str]) -> Pretraining | None:
    """The texts of the pretraining mix: reviews of `algo.ptx_source`, or of the prompts' source without those `tested`.

    With algo.ptx=0 and a source they are only measured, so that a run without the mix has a curve to compare with.
    """
    from rlhf_cli.data.sources import load_reviews

    algo = config.algo
    if not algo.ptx and algo.ptx_source is None:
        return None
    source = algo.ptx_source or config.data.source
    reviews = load_reviews(source, seed=config.data.seed, limit=PTX_TEXTS)
    unseen = [r.text for r in reviews if source != config.data.source or r.id not in tested]
    made = Pretraining.make(unseen, tokenizer, weight=algo.ptx, batch_size=algo.ptx_batch_size, seed=config.seed)
    if not made.held_out:
        raise UserError(f"algo.ptx_source={source}: the pretraining mix needs two texts at least, it has {len(unseen)}")
    return made


PTX_TEXTS = 2000


def prefixes(config: Config, where: Compute, notify: Callable[[str], None]) -> Any:
    """The balanced prefix data set (a `datasets.DatasetDict`), from the cache or built now."""
    from rlhf_cli.data.prefixes import load_prefixes

    data = config.data
    identity = classifier_path(data.labeler, config, notify) if data.labeler != "vader" else "vader"

    def label(texts: list[str]) -> list[Sentiment]:
        if data.labeler == "vader":
            return vader_labels(texts)
        notify(f"labelling {len(texts)} prefixes with {data.labeler}")
        judge = Classifier(identity, device=where.device, batch_size=config.reward.batch_size, dtype=where.dtype)
        return judge.labels(texts)

    with kept_in(config.cache_dir) as cache:
        return load_prefixes(
            data.source,
            min_words=data.min_words,
            max_words=data.max_words,
            train=data.train,
            test=data.test,
            seed=data.seed,
            labeler=identity,
            label=label,
            cache_dir=cache,
        )


def make_lab(
    config: Config,
    notify: Callable[[str], None],
    *,
    actor: str | None = None,
    critic: str | None = None,
    reference: str | None = None,
    reward: str | None = None,
) -> Lab:
    """Load everything; the named folders are of a checkpoint, to start from instead of the config's models."""
    torch.manual_seed(config.seed)
    where = compute(config)
    base = model_path(config.actor, config, notify)
    judge, learned = scorer(config, where, notify, learned_path=reward)
    rows = prefixes(config, where, notify)
    notify("loading models")
    tokenizer = load_tokenizer(base)
    policy = load_actor(actor or base, device=where.device)
    reference = load_actor(reference or base, device=where.device, dtype=where.dtype).requires_grad_(False)
    value_model = None
    if config.algo.needs_critic:
        if config.critic.name == "shared":
            value_model = SharedCritic(policy)
        else:
            value_model = load_critic(critic or critic_path(config, base, notify), device=where.device)
        if critic:
            restore_head(value_model, critic)
    say_way(policy, notify)
    if config.optim.gradient_checkpointing:
        for model in (policy, value_model):
            if model is not None:
                checkpoint_activations(model)
    ends = eos_ids(policy, tokenizer)
    template = Template(config.prompt.name, config.prompt.system, config.prompt.user)
    if template.fitted(tokenizer) is not template:
        notify("the chat template has no system role: prompt.system stands at the start of the user turn")
    pad = pad_id(tokenizer, ends)
    test = balanced(rows["test"], config.val.prompts)
    train = PromptSet.make(rows["train"], template, tokenizer, pad_id=pad)
    tested = PromptSet.make(test, template, tokenizer, pad_id=pad)
    check_fit(policy, [*train.ids, *tested.ids], config.rollout.max_response_length)
    return Lab(
        config=config,
        compute=where,
        actor=policy,
        tokenizer=tokenizer,
        reference=reference,
        critic=value_model,
        scorer=judge,
        train=train,
        test=tested,
        eos=ends,
        pretraining=pretraining(config, tokenizer, set(rows["test"]["review"])),
        continual=continual(config, learned, where, notify),
        gold=None if config.gold.name == "none" else source(config.gold, config, where, notify),
        memory=Memory(notify),
    )


def check_fit(model: Any, prompts: list[list[int]], response: int) -> None:
    """Raise UserError where prompt and response exceed the model's context, or the tokenizer its vocabulary."""
    longest, context = max(map(len, prompts)), context_length(model)
    if context is not None and longest + response > context:
        raise UserError(
            f"the longest prompt ({longest} tokens) and rollout.max_response_length={response} do not fit in the "
            f"actor's context of {context} tokens: lower rollout.max_response_length or data.max_words, or shorten "
            "prompt.user"
        )
    known = model.get_input_embeddings().weight.shape[0]
    if (largest := max(map(max, prompts))) >= known:
        raise UserError(
            f"the tokenizer gives the token {largest}, and the actor knows {known}: tokenizer and weights are of "
            "different models"
        )


def say_way(policy: Any, notify: Callable[[str], None]) -> None:
    """A line for a model that takes the plain way."""
    if (way := way_of(policy)).decoder is None:
        notify(f"the actor takes the {way}")
    if learns_in_eval_mode(policy):
        notify(
            "its dropout cannot be switched off in train mode: it learns in eval mode, without gradient checkpointing"
        )


def balanced(rows: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` rows, taken from the classes in turn."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    turns = max(map(len, by_class.values()))
    return [by_class[c][i] for i in range(turns) for c in sorted(by_class) if i < len(by_class[c])][:count]
