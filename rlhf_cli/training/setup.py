"""From a checked config to the things a run works with. The one place that reads the whole config."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import check_writable
from rlhf_cli.config.schema import Config, Endpoint, Gold, Model, RewardTrainConfig
from rlhf_cli.data.lexicon import vader_labels, vader_share
from rlhf_cli.data.prompts import PromptSet, Template
from rlhf_cli.data.reviews import Sentiment
from rlhf_cli.models.load import eos_ids, load_actor, load_critic, load_tokenizer
from rlhf_cli.models.memory import Memory
from rlhf_cli.models.shared import SharedCritic
from rlhf_cli.rewards.classifier import Classifier
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.process import increments
from rlhf_cli.rewards.rule import form
from rlhf_cli.rewards.scorer import Score, Scorer, Texts, python_score
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.rollout import Rollout
from rlhf_cli.training import distributed
from rlhf_cli.training.continual import Continual
from rlhf_cli.training.pretraining import Pretraining

MINIATURE_SEED = 0
"""The miniatures are fixed, as hub models are: a run's seed does not change its starting point."""


@dataclass(frozen=True)
class Compute:
    """Where and in which dtype forward passes run; master weights are float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


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
            responses=decode(tokens, skip_special_tokens=True),
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


def compute(config: Config) -> Compute:
    name = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and distributed.world() > 1:
        name = str(distributed.local_device())
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={config.device}: torch sees no CUDA GPU here (use device=cpu or device=auto)")
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and name.startswith("cuda") and torch.cuda.is_bf16_supported()
    )
    return Compute(torch.device(name), torch.bfloat16 if bf16 else torch.float32)


def pad_id(tokenizer: Any, eos: tuple[int, ...]) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]


def model_path(model: Any, config: Config, notify: Callable[[str], None]) -> str:
    """A folder or hub id: what was typed, else the hub's at full scale, else the miniature (built if missing)."""
    if model.path:
        return str(model.path)
    if config.scale == "full":
        return str(model.hub)
    return miniature_path(model.name, config, notify)


def critic_path(config: Config, actor: str, notify: Callable[[str], None]) -> str:
    """The critic's model; one named as the actor follows it to the folder that was typed for the actor."""
    follows = config.critic.path is None and config.critic.name == config.actor.name
    return actor if follows else model_path(config.critic, config, notify)


def miniature_path(name: str, config: Config, notify: Callable[[str], None]) -> str:
    from rlhf_cli.miniatures.build import miniature

    source = "generated" if config.data.source == "imdb" else config.data.source
    with kept_in(config.cache_dir) as cache:
        return str(miniature(name, source=source, cache_dir=cache, seed=MINIATURE_SEED, notify=notify))


@contextmanager
def kept_in(cache_dir: str) -> Iterator[Path]:
    """The cache's folder; that it cannot be written is said when something is to be kept there, not before."""
    try:
        yield Path(cache_dir).expanduser()
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        check_writable(cache_dir, "cache_dir")
        raise error


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


def continual(
    config: Config, learned: LearnedReward | None, where: Compute, notify: Callable[[str], None]
) -> Continual | None:
    """What trains the reward model on during the run, if `algo.retrain_epochs` asks for it."""
    algo, reward = config.algo, config.reward
    if not algo.retrain_epochs or learned is None:
        return None
    path = classifier_path(algo.retrain_judge or "roberta_large", config, notify)
    judge = Classifier(path, device=where.device, batch_size=reward.batch_size, dtype=where.dtype)
    return Continual(
        reward=learned,
        judge=lambda texts: judge.score(texts.view(reward.text), reward.target),
        history=algo.retrain_history,
        epochs=algo.retrain_epochs,
        batch=16,
        lr=algo.retrain_lr,
        seed=config.seed,
    )


def scorer(
    config: Config, where: Compute, notify: Callable[[str], None], *, learned_path: str | None = None
) -> tuple[Scorer, LearnedReward | None]:
    """The reward, and the model behind it where it is a learned one; `learned_path` is a checkpoint's."""
    reward, penalty = config.reward, config.penalty
    learned: LearnedReward | None = None
    sources: dict[str, Score] = {}
    for name, judge in reward.all_sources.items():
        if judge.name == "learned" and not judge.fn:
            model = learned_reward(judge, where, path=learned_path)
            learned = model if judge is reward else None
            sources[name] = partial(_learned_score, model, judge.text)
        else:
            sources[name] = source(judge, config, where, notify)
    weights = {name: getattr(judge, "weight", 1.0) for name, judge in reward.all_sources.items()}
    return Scorer(sources, weights, reward.combine, penalty.weight, penalty.sizes, penalty.level), learned


def _learned_score(model: LearnedReward, view: str, texts: Texts) -> torch.Tensor:
    return model.score(texts.view(view))


def learned_reward(judge: Gold, where: Compute, *, path: str | None = None) -> LearnedReward:
    return LearnedReward(
        path or str(judge.path),
        device=where.device,
        batch_size=judge.batch_size,
        dtype=torch.float32,
        normalize=judge.normalize,
    )


def source(judge: Gold, config: Config, where: Compute, notify: Callable[[str], None]) -> Score:
    """One judge, on the view of the texts that its config names; what it lacks stops here, not after a rollout."""
    if judge.fn:
        return python_score(judge.fn)
    if judge.name == "vader":
        return lambda texts: torch.tensor(vader_share(texts.view(judge.text), judge.target))
    if judge.form:
        rule = judge.form.model_dump()
        return lambda texts: torch.tensor([form(text, **rule) for text in texts.view(judge.text)])
    if judge.endpoint:
        ask = language_model(judge.endpoint, Path(config.cache_dir).expanduser())
        return lambda texts: ask.score(texts.view(judge.text))
    path = model_path(judge, config, notify)
    classifier = Classifier(path, device=where.device, batch_size=judge.batch_size, dtype=where.dtype)
    classifier.score(["A film."], judge.target)
    return lambda texts: classifier.score(texts.view(judge.text), judge.target)


def language_model(endpoint: Endpoint, cache: Path) -> Any:
    from rlhf_cli.rewards.judge import Judge, JudgeError

    options = endpoint.model_dump()
    judge = Judge(options.pop("url"), options.pop("model"), **options, cache=cache / "judge.sqlite")
    try:
        judge.score(["A film."])
    except JudgeError as error:
        raise UserError(f"reward.endpoint: {error} (check reward.endpoint.url, .model and .key_env)") from None
    return judge


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


CLASSIFIERS = {
    "roberta_large": "j-hartmann/sentiment-roberta-large-english-3-classes",
    "roberta_base": "cardiffnlp/twitter-roberta-base-sentiment-latest",
}


def classifier_path(name: str, config: Config, notify: Callable[[str], None]) -> str:
    """Of a named classifier at this run's scale; other names are folders or hub ids already."""
    if name not in CLASSIFIERS:
        return name
    return model_path(Model(name=name, hub=CLASSIFIERS[name], path=None), config, notify)


def trunk_path(config: RewardTrainConfig, notify: Callable[[str], None]) -> str:
    """Where a new reward model starts: what was typed, else the judge's model, else (it has none) roberta_large."""
    judge = config.reward
    if config.reward_train.start or not (judge.path or judge.hub):
        return classifier_path(config.reward_train.start or "roberta_large", config, notify)
    return model_path(judge, config, notify)


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
            _restore_head(value_model, critic)
    if config.optim.gradient_checkpointing:
        for model in (policy, value_model):
            if model is not None:
                # its new name since transformers 5.23
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    ends = eos_ids(policy, tokenizer)
    template = Template(config.prompt.name, config.prompt.system, config.prompt.user)
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
    longest, context = max(map(len, prompts)), model.config.max_position_embeddings
    if longest + response > context:
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


def _restore_head(critic: Any, folder: str) -> None:
    """`load_critic` starts the head at 0; a checkpoint's critic has its own."""
    from safetensors.torch import load_file

    saved = load_file(str(Path(folder) / "model.safetensors"))
    with torch.no_grad():
        critic.score.weight.copy_(saved["score.weight"])
        critic.score.bias.copy_(saved["score.bias"])


def balanced(rows: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` rows, taken from the classes in turn."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    turns = max(map(len, by_class.values()))
    return [by_class[c][i] for i in range(turns) for c in sorted(by_class) if i < len(by_class[c])][:count]
