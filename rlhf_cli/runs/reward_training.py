"""A whole reward-model training in its folder: rank responses, hold some out, fit, examine, save."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rlhf_cli.build.experiment import Experiment, make_experiment
from rlhf_cli.build.paths import trunk_path
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import RewardTrainConfig
from rlhf_cli.engine.device import compute
from rlhf_cli.engine.low_rank import add_low_rank, merge_low_rank
from rlhf_cli.preferences.fit import examine, fit
from rlhf_cli.preferences.ranked import RankedGroup, ranked, read_ranked, split, write_ranked
from rlhf_cli.rewards.classifier import encode
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.scorer import joined
from rlhf_cli.runs.folder import begun, first_line
from rlhf_cli.runs.signals import StopRequest, stop_on_signals
from rlhf_cli.runs.status import Interrupted, concluded, write_atomic, write_status
from rlhf_cli.tracking.trackers import make_trackers
from rlhf_cli.training.rollouts import generate

LEARNING_RATE = {"mini": 1e-3, "small": 3e-5, "full": 1e-5}
AT_ONCE = 64
"""Responses sampled between two looks at the signals."""


def train_reward_model(config: RewardTrainConfig, folder: Path, *, group: str | None = None) -> list[Any]:
    """Train in `folder`; returns (metrics before, metrics after, calibration) on the held-out prompts.

    Leaves reward_model/, metrics.jsonl, calibration.json and, where the responses were sampled here, ranked.jsonl.
    A signal ends it after the step; the model is examined and saved as it is then. Raises what went wrong, after
    recording it in status.json.
    """
    with stop_on_signals() as stop, begun(config, folder, steps=0):
        with stop.at_once():
            print(first_line(config), flush=True)
            given = read_ranked(config.reward_train.data) if config.reward_train.data else None
            start = trunk_path(config, notify)
            torch.manual_seed(config.seed)  # the new head is drawn
            device = compute(config.device, config.precision).device
            reward = LearnedReward(start, device=device, batch_size=64, dtype=torch.float32, new_head=True)
            if (lora := config.reward_train.lora) and lora.rank:
                add_low_rank(reward.model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, key="reward_train")
        groups = given or synthesise(config, stop)
        if not given:
            write_ranked(folder / "ranked.jsonl", groups)
        if stop.signal:
            notify(f"stopped by {stop.signal}; {len(groups)} ranked groups are kept: {folder / 'ranked.jsonl'}")
            raise Interrupted(stop.signal)
        groups = told_apart(groups, reward)
        training, held = split(groups, config.reward_train.held_out, seed=config.seed)
        notify(f"{len(training)} ranked groups to train on, {len(held)} held out, starting from {start}")
        return _fit(config, folder, group, reward, training, held, stop)


def told_apart(groups: list[RankedGroup], reward: LearnedReward) -> list[RankedGroup]:
    """The groups without responses that the model cannot tell from a better one: equal texts, or equal once the start
    of a long prompt is cut off. Says how many. Raises UserError where nothing is left."""
    kept, dropped = [], 0
    before = reward.truncated
    for group in groups:
        ids = [tuple(row) for row in encode(reward, [joined(group.prompt, response) for response in group.responses])]
        rows = [i for i, row in enumerate(ids) if ids.index(row) == i]
        dropped += len(ids) - len(rows)
        ranks = [group.ranks[i] for i in rows]
        if len(set(ranks)) > 1:
            kept.append(RankedGroup(group.prompt, [group.responses[i] for i in rows], ranks))
    if reward.truncated > before:
        notify(
            f"{reward.truncated - before} texts are longer than {reward.limit} tokens: their prompts lose their start"
        )
    if dropped:
        notify(
            f"{dropped} responses are equal to another of their prompt and are left out; {len(kept)} groups are left"
        )
    if not kept:
        raise UserError("no group has two different responses of different ranks: there is nothing to learn from")
    return kept


def notify(text: str) -> None:
    print(text, flush=True)


def synthesise(config: RewardTrainConfig, stop: StopRequest) -> list[RankedGroup]:
    """Responses that the actor samples on training prompts, ranked by the config's reward: the judge.

    Fewer than asked for where all responses to a prompt score alike, or a signal asked to stop.
    """
    experiment = make_experiment(config, notify, learns=False)
    wanted = config.reward_train
    notify(f"sampling {wanted.responses} responses to each of {wanted.prompts} prompts, ranked by {config.reward.name}")
    groups: list[RankedGroup] = []
    count = max(1, AT_ONCE // wanted.responses)
    for step in track(range(1, -(-wanted.prompts // count) + 1), description="sampling"):
        left = wanted.prompts - (step - 1) * count
        chosen = experiment.data.prompts.batch(step, count=count, seed=config.seed)[:left]
        groups += _ranked_samples(experiment, chosen, step, wanted.responses)
        if stop.signal:
            break
    return groups


def _ranked_samples(experiment: Experiment, chosen: list[int], step: int, responses: int) -> list[RankedGroup]:
    policy, prompts = experiment.policy, experiment.data.prompts
    rollout = generate(policy, prompts.prompts(chosen, group_size=responses), step=step)
    texts = policy.texts(rollout, prompts, [i for i in chosen for _ in range(responses)])
    return ranked(texts, experiment.reward(texts).score.tolist(), responses)


def _fit(
    config: RewardTrainConfig,
    folder: Path,
    group: str | None,
    reward: LearnedReward,
    training: list[RankedGroup],
    held: list[RankedGroup],
    stop: StopRequest,
) -> list[Any]:
    wanted = config.reward_train
    lr = wanted.lr or LEARNING_RATE[config.scale]
    steps = wanted.epochs * -(-len(training) // wanted.batch)
    trackers = make_trackers(
        config.tracking.to,
        folder,
        config.model_dump(by_alias=True),
        steps=steps,
        resume_step=None,
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=folder.name,
        group=config.tracking.group or group,
        run_id=None,
    )
    before, _ = examine(reward, held)
    after: list[Any] = []

    def tick(metrics: dict[str, float]) -> None:
        step = int(metrics.pop("step"))
        if step == steps or stop.signal:
            after.extend(_conclude(folder, reward, held))
            metrics |= after[0]
        trackers.log(step, metrics)
        write_status(folder, "running", step=step, steps=steps)
        if stop.signal and step < steps:
            trackers.message(f"stopped by {stop.signal} at step {step}; saved as it is: {folder / 'reward_model'}")
            raise Interrupted(stop.signal)

    with concluded(trackers.finish):
        trackers.log(0, before)
        fit(reward, training, epochs=wanted.epochs, batch=wanted.batch, lr=lr, seed=config.seed, tick=tick)
    write_status(folder, "done", step=steps, steps=steps)
    return [before, *after]


def _conclude(folder: Path, reward: LearnedReward, held: list[RankedGroup]) -> tuple[dict[str, float], list[Any]]:
    """Examine and save; (metrics, calibration)."""
    metrics, calibration = examine(reward, held)
    write_atomic(folder / "calibration.json", json.dumps(calibration, indent=1) + "\n")
    merge_low_rank(reward.model)  # nothing learns after this
    reward.save(folder / "reward_model", mean=metrics["val/reward_mean"], std=max(1e-6, metrics["val/reward_std"]))
    return metrics, calibration
