"""A whole training run in its folder: set up, loop, validate, log, checkpoint, resume."""

import hashlib
import json
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rlhf_cli.config.errors import RunFailed, UserError
from rlhf_cli.config.schema import Config, RewardTrainConfig
from rlhf_cli.tracking.compose import make_trackers
from rlhf_cli.tracking.text import harmless
from rlhf_cli.training import distributed
from rlhf_cli.training.best import Best
from rlhf_cli.training.checkpoint import (
    check_room,
    disk_full,
    load_trainer,
    newest,
    prune,
    save_checkpoint,
    step_of,
)
from rlhf_cli.training.guards import Guards
from rlhf_cli.training.hacking import HackingWatch, account
from rlhf_cli.training.lock import only_process
from rlhf_cli.training.nonfinite import finite_judge, finite_step
from rlhf_cli.training.setup import Lab, make_lab
from rlhf_cli.training.state import make_state
from rlhf_cli.training.status import Interrupted, mark_reported, read_status, reported, write_atomic, write_status


class StopRequest:
    """The signal that asked the run to stop, if one did."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.at_once = False
        """Nothing is worth saving yet: stop where it stands."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask to stop after the step; a second SIGINT stops at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: Any) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name
        if request.at_once:
            raise Interrupted(request.signal)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config: Config, folder: Path, *, group: str | None = None) -> dict[str, float]:
    """Train in `folder`; returns the last metrics. Raises what went wrong, after recording it in status.json."""
    with distributed.together(config.device), ExitStack() as stack:
        _fits(config)
        folder = distributed.first(lambda: folder)
        checkpoint = distributed.first(lambda: stack.enter_context(begun(config, folder, steps=config.steps)))
        stop = stack.enter_context(stop_on_signals())
        return _train(config, folder, checkpoint, group, stop)


def _fits(config: Config) -> None:
    """Raises UserError where a process would have nothing to do."""
    count = distributed.world()
    smallest = min(config.rollout.batch_size, config.val.prompts)
    if count > smallest:
        raise UserError(f"{count} processes for rollout.batch_size and val.prompts of {smallest}: start fewer")
    rows = config.rollout.batch_size // config.algo.minibatches
    if config.shard and rows % count:
        raise UserError(
            f"shard=true: a minibatch of {rows} rows does not part into {count} equal shares (rollout.batch_size over "
            "algo.minibatches must be a multiple of the number of processes)"
        )


@contextmanager
def begun(config: Config, folder: Path, *, steps: int) -> Iterator[Path | None]:
    """The folder is this process's, and says how its run ended; gives the checkpoint to go on from."""
    with only_process(folder):
        checkpoint = begin(config, folder, steps=steps)
        with recorded(folder):
            yield checkpoint


def begin(config: Config, folder: Path, *, steps: int) -> Path | None:
    """Make the folder a run's; returns the checkpoint to go on from. Raises UserError if it is another run's."""
    checkpoint = _claim(config, folder)
    write_atomic(folder / "config.yaml", yaml.safe_dump(config.model_dump(by_alias=True), sort_keys=False))
    write_atomic(folder / "environment.json", json.dumps(machine(), indent=1) + "\n")
    write_status(folder, "running", step=step_of(checkpoint) if checkpoint else 0, steps=steps)
    return checkpoint


def machine() -> dict[str, str]:
    """Versions and hardware, for the report."""
    import torch

    versions = {name: version(name) for name in ("rlhf", "torch", "transformers")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    system = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), **versions, "system": system, "cores": str(os.cpu_count()), **gpu}


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """status.json says how the run in this folder ended, and error.log why, before the exception goes on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        _note(folder, "interrupted", None)
        raise
    except Exception as failure:
        error = _disk_full(failure, folder) or failure
        _note(folder, "failed", str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}")
        if isinstance(error, RunFailed):
            print(f"rlhf: {harmless(str(error))}", file=sys.stderr, flush=True)
            mark_reported(error)
        elif not isinstance(error, UserError) and not reported(error):
            (folder / "error.log").write_text(traceback.format_exc())
            traceback.print_exc()
            mark_reported(error)
        raise error from (None if error is failure else failure)


def _disk_full(failure: Exception, folder: Path) -> RunFailed | None:
    if not disk_full(failure):
        return None
    kept = newest(folder, print)
    rest = f"{kept} is whole: make room, then rlhf train resume={folder}" if kept else "no checkpoint was saved before"
    return RunFailed(f"the disk is full ({failure}). {rest}")


def _note(folder: Path, state: str, error: str | None) -> None:
    before = read_status(folder)
    write_status(folder, state, step=before.get("step", 0), steps=before.get("steps", 0), error=error)


def _claim(config: Config, folder: Path) -> Path | None:
    """The checkpoint to go on from, None for a new run; refuses a folder that holds another run."""
    from rlhf_cli.config.compose import difference, saved_config

    never_began = read_status(folder).get("state") == "failed" and not (folder / "metrics.jsonl").exists()
    holds_run = (folder / "config.yaml").exists() and not never_began
    if config.resume is None:
        if holds_run:
            go_on = "" if isinstance(config, RewardTrainConfig) else f"go on with it (rlhf train resume={folder}) or "
            raise UserError(f"{folder} already holds a run: {go_on}choose another hydra.run.dir=")
        return None
    if config.resume == "auto" and holds_run:
        changed = difference(saved_config(folder), config.model_dump(by_alias=True))
        if changed:
            listed = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
            raise UserError(f"resume=auto: {folder} holds a run with another config:\n{listed}")
    found = newest(folder, print) if holds_run else None
    if found is None and holds_run:
        print(f"{folder} has no whole checkpoint: it starts anew")
    return found


def _train(
    config: Config, folder: Path, checkpoint: Path | None, group: str | None, stop: StopRequest
) -> dict[str, float]:
    def notify(text: str) -> None:
        print(text, flush=True)

    stop.at_once = True
    notify(first_line(config))
    trainer: dict[str, Any] | None = None
    saved: dict[str, Any] = {"step": 0}
    if checkpoint:
        trainer, saved = load_trainer(checkpoint)
    start = int(saved["step"])
    lab = distributed.first_then_the_rest(
        lambda: make_lab(
            config,
            notify,
            actor=str(checkpoint / "actor") if checkpoint else None,
            critic=str(checkpoint / "critic") if checkpoint and config.algo.needs_critic else None,
            reference=str(checkpoint / "reference") if checkpoint and config.algo.steps_per_iteration else None,
            reward=str(checkpoint / "reward_model") if checkpoint and config.algo.retrain_epochs else None,
        )
    )
    if checkpoint and lab.continual:
        lab.continual.restore(checkpoint)
    if config.shard:
        for model in (lab.actor, lab.critic, lab.reference):
            distributed.shard(model, lab.compute.device)
    state = make_state(config, lab)
    origin = {"environment": environment(lab), "prompts": fingerprint(lab)}
    if trainer is not None:
        _same_origin(saved, origin, notify)
        state.restore(trainer)
        notify(f"resumed at step {start} of {config.steps}")
    distributed.first(lambda: check_room(folder, lab, start=start))
    trackers = make_trackers(
        config.tracking.name if distributed.is_first() else "silent",
        folder,
        config.model_dump(by_alias=True),
        steps=config.steps,
        resume_step=start if checkpoint else None,
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=folder.name,
        group=config.tracking.group or group,
        run_id=saved.get("wandb_run_id"),
    )
    watch = distributed.first(lambda: HackingWatch.of(folder, config.stop.hacking_index))
    alerted = watch.onset is not None
    guards = Guards()
    outcome, metrics, step = "failed", {}, start

    best, wanted = Best.of(config.checkpoint, saved.get("best")), config.checkpoint

    def save(step: int) -> None:
        extra = {"wandb_run_id": trackers.wandb_run_id, "best": best.known, **origin}
        saved = save_checkpoint(folder, step, lab, state, extra)
        if distributed.is_first():
            best.name(saved)
            prune(folder, keep_last=wanted.keep_last, keep_every=wanted.keep_every, best=best.step)

    def status(state: str, step: int) -> None:
        if distributed.is_first():
            write_status(folder, state, step=step, steps=config.steps)

    try:
        stop.at_once = False
        for step in range(start if checkpoint is None else start + 1, config.steps + 1):
            metrics = finite_step(lab, state, step, folder, trackers.message) if step else {}
            for warning in guards.warnings(metrics):
                trackers.message(warning)
            last = step == config.steps
            validated = step == 0 or last or _due(step, config.val.every)
            if validated:
                judged, rows = finite_judge(lab, step, folder, trackers.message)
                metrics |= judged | (watch.look(step, judged, rows) if rows else {})
                trackers.samples(step, rows)
            trackers.log(step, metrics)
            status("running", step)
            stop.signal = distributed.any_of(stop.signal)
            if watch.onset is not None and not alerted:
                alerted = True
                trackers.alert(f"reward hacking from step {watch.onset}", account(metrics, folder))
            if config.stop.on_hacking and watch.onset is not None:
                trackers.message(f"stopped by stop.on_hacking at step {step}; {newest_words(folder)}")
                break
            wary = config.stop.on_hacking and watch.suspicious  # the checkpoint from before stays the newest
            due = (validated and best.beaten(step, metrics)) or (step > 0 and _due(step, config.checkpoint.every))
            due = due or (validated and config.stop.on_hacking)
            if last or stop.signal or (due and not wary):
                save(step)
            if stop.signal and not last:
                outcome = "interrupted"
                status("interrupted", step)
                trackers.message(f"stopped by {stop.signal} at step {step}; go on: rlhf train resume={folder}")
                raise Interrupted(stop.signal)
        outcome = "done"
    finally:
        trackers.finish(outcome)
    status("done", step)
    notify(f"done: {folder}")
    return metrics


def newest_words(folder: Path) -> str:
    found = newest(folder, print)
    return f"the checkpoint from before is kept: {found}" if found else "no checkpoint was saved before"


def environment(lab: Lab) -> dict[str, Any]:
    """What the last digits of a number hang on."""
    import torch
    import transformers

    versions: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"processes": distributed.world()}
    return {**versions, "threads": torch.get_num_threads(), "device": lab.compute.device.type}


def fingerprint(lab: Lab) -> str:
    """Of all prompts, as the actor reads them."""
    return hashlib.sha256(json.dumps([lab.train.ids, lab.test.ids]).encode()).hexdigest()


def _same_origin(saved: dict[str, Any], now: dict[str, Any], notify: Callable[[str], None]) -> None:
    """Refuse a checkpoint of other prompts; say where another environment may change the last digits."""
    if saved.get("prompts", now["prompts"]) != now["prompts"]:
        raise UserError(
            "the prompts are no longer those of the checkpoint: data.source, the labeler or the tokenizer changed on "
            "the disk. Put them back, or start a new run"
        )
    for key, value in now["environment"].items():
        before = saved.get("environment", {}).get(key, value)
        if before != value:
            notify(f"{key} was {before} at the checkpoint and is {value}: the last digits of the metrics may differ")


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def first_line(config: Config) -> str:
    """What every run says first."""
    why = "miniature models and data, a simulation" if config.scale == "mini" else "models from the hub"
    reward = config.reward.fn or config.reward.path or config.reward.name
    return (
        f"scale={config.scale} ({why}) · {config.algo.name} · actor {config.actor.path or config.actor.name} · "
        f"reward {reward} · {config.data.name} · seed {config.seed}"
    )


def last_metrics(folder: Path) -> dict[str, Any]:
    """Every metric's last value in a run's metrics.jsonl."""
    latest: dict[str, Any] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            latest |= json.loads(line)
        except ValueError:
            break
    return latest
