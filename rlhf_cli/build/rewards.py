"""From a checked config to the reward: its sources, the held-out judge, and the trainer of a learned reward model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.build.paths import classifier_path, model_path
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.reward_schema import Endpoint, Reward, TextJudge
from rlhf_cli.config.schema import Config
from rlhf_cli.data.lexicon import vader_share
from rlhf_cli.engine.device import Compute
from rlhf_cli.preferences.continual import Continual
from rlhf_cli.rewards.classifier import Classifier, features
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.rule import form
from rlhf_cli.rewards.scorer import ModelScore, Score, Scorer, python_score
from rlhf_cli.rl.moments import RunningMoments


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
            sources[name] = ModelScore(judge.text, model.score, partial(features, model))
        else:
            sources[name] = source(judge, config, where, notify)
    weights = {name: getattr(judge, "weight", 1.0) for name, judge in reward.all_sources.items()}
    running = reward.combine == "normalised_sum" and config.algo.advantage not in ("group", "leave_one_out")
    made = Scorer(
        sources,
        weights,
        combine=reward.combine,
        aversion=reward.aversion,
        moments=RunningMoments() if running else None,
        shapes={n: {"saturate": j.saturate, "cap": j.cap} for n, j in reward.all_sources.items()},
        penalty_weight=penalty.weight,
        penalty_n=penalty.sizes,
        penalty_level=penalty.level,
        overlong_buffer=config.algo.overlong_buffer,
        every_tokens=reward.every_tokens,
    )
    return made, learned


def learned_reward(judge: TextJudge, where: Compute, *, path: str | None = None) -> LearnedReward:
    return LearnedReward(
        path or str(judge.path),
        device=where.device,
        batch_size=judge.batch_size,
        dtype=torch.float32,
        normalize=judge.normalize,
    )


def source(judge: TextJudge, config: Config, where: Compute, notify: Callable[[str], None]) -> Score:
    """One reward source, on the view of the texts that its config names. Tried once, so that faults show early."""
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
    return ModelScore(
        judge.text, partial(classifier.score, target=judge.target, output=judge.output), partial(features, classifier)
    )


def gold_judges(config: Config, where: Compute, notify: Callable[[str], None]) -> dict[str, Score]:
    """The judges that are not trained on, by name, the first one first. Says where one is the reward itself."""
    for name, judge in config.gold.judges.items():
        if twin := same_as(judge, config.reward):
            notify(f"gold={name} is {twin}: it cannot say what was earned; another judge can: gold=")
        of_a_class = not (judge.fn or judge.form or judge.endpoint)
        if of_a_class and all(part.fn or part.form for part in config.reward.all_sources.values()):
            notify(
                f"gold={name} judges how {judge.target} a text is: if that is not what your reward is about, gold=none"
            )
    return {name: source(judge, config, where, notify) for name, judge in config.gold.judges.items()}


def same_as(judge: TextJudge, reward: Reward) -> str:
    """What of the reward a judge is, in words; empty where it is none of it."""
    if judge.fn or judge.endpoint:
        return ""
    for part in reward.all_sources.values():
        alike = (part.name, part.path, part.fine_tune) == (judge.name, judge.path, judge.fine_tune)
        if alike and not part.fn:
            return "the reward itself" if part is reward else f"a part of the reward, {part.name}"
    return ""


def language_model(endpoint: Endpoint, cache: Path) -> Any:
    from rlhf_cli.rewards.endpoint import Judge, JudgeError

    options = endpoint.model_dump()
    judge = Judge(options.pop("url"), options.pop("model"), **options, cache=cache / "judge.sqlite")
    try:
        judge.score(["A film."])
    except JudgeError as error:
        raise UserError(f"reward.endpoint: {error} (check reward.endpoint.url, .model and .key_env)") from None
    return judge


def continual(
    config: Config, learned: LearnedReward | None, where: Compute, notify: Callable[[str], None]
) -> Continual | None:
    """What trains the reward model further during the run, if `algo.retrain_epochs` asks for it."""
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
