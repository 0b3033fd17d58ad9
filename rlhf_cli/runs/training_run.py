"""A whole training run: open its folder, take its steps, stop after a checkpoint."""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.engine import processes as distributed
from rlhf_cli.runs.checkpoint import step_of
from rlhf_cli.runs.conclusion import asks_for_free, closing, record_words, what_next, wrapped
from rlhf_cli.runs.folder import begun
from rlhf_cli.runs.session import Session, newest_words, notify, open_session
from rlhf_cli.runs.signals import StopRequest, stop_on_signals
from rlhf_cli.runs.status import Interrupted, concluded, read_status, write_status
from rlhf_cli.tracking.text import shell


def train(config: Config, folder: Path, *, group: str | None = None) -> dict[str, float]:
    """Train in `folder`; returns the last metrics. Raises what went wrong, after recording it in status.json."""
    with distributed.together(config.device), ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        _fits(config)
        config, folder = distributed.first(lambda: (config, folder))
        was_done = distributed.first(lambda: read_status(folder).get("state") == "done")
        checkpoint = distributed.first(lambda: stack.enter_context(begun(config, folder, steps=config.steps)))
        if was_done and checkpoint and (at := step_of(checkpoint)) >= config.steps:
            distributed.first(lambda: write_status(folder, "done", step=at, steps=config.steps))
            more = f"rlhf train resume={shell(folder)} steps=…"
            notify(f"{folder} is done: {at} of {config.steps} steps. For more: {more}")
            return {}
        while True:
            with stop.at_once():
                session = open_session(config, folder, checkpoint, group)
            with concluded(session.trackers.finish):
                metrics = run(session, stop, alone=group is None)
            checkpoint = session.back
            if checkpoint is None:
                break
            del session  # its models go before those of the checkpoint come
        if distributed.is_first():
            conclude(session, alone=group is None)
        return metrics


def conclude(session: Session, *, alone: bool) -> None:
    """Say how the run went; `alone`: no job of a sweep, so also how to go on."""
    folder, config = session.folder, session.config
    if asks_for_free(config):
        record_words(folder, session.experiment.reward.score, notify)
    notify(f"done: {folder}")
    for line in closing(folder, config):
        notify(wrapped(line, shutil.get_terminal_size().columns) if sys.stdout.isatty() else line)
    for line in what_next(folder, config) if alone else []:
        notify(line)


def run(session: Session, stop: StopRequest, *, alone: bool = True) -> dict[str, float]:
    """Take every step that is left; returns the last one's metrics. Raises Interrupted after a checkpoint. `alone`: no
    job of a sweep, which says itself how it goes on."""
    go_on = f"; go on: rlhf train resume={shell(session.folder)}" if alone else ""
    steps, metrics, step = session.config.steps, {}, session.steps.start - 1
    reason = distributed.first(lambda: session.rules.reason)
    for step in session.steps if reason is None else ():
        metrics = session.take(step)
        stop.signal = distributed.any_of(stop.signal)
        if session.back is not None:
            return metrics
        if session.hacked:
            session.trackers.message(f"stopped by stop.on_hacking at step {step}; {newest_words(session.folder)}")
            break
        due, reason = session.due(step, metrics), distributed.first(lambda: session.rules.reason)
        if step == steps or stop.signal or due or reason:
            session.save(step)
        if reason:
            break
        if stop.signal and step < steps:
            session.tell("interrupted", step)
            session.trackers.message(f"stopped by {stop.signal} at step {step}{go_on}")
            raise Interrupted(stop.signal)
    reason = reason if step < steps else None
    if reason:
        more = f"{go_on} stop.when=[]" if go_on else ""
        session.trackers.message(f"stopped by stop.when at step {step}: {reason}{more}")
    session.tell("done", step, reason)
    return metrics


def _fits(config: Config) -> None:
    """Raises UserError where a process would have nothing to do."""
    count = distributed.world()
    smallest = min(config.rollout.batch_size, config.val.prompts)
    if count > smallest:
        raise UserError(f"{count} processes for rollout.batch_size and val.prompts of {smallest}: start fewer")
    if config.detect_anomaly and config.on_nonfinite == "skip" and count > 1:
        raise UserError(
            "detect_anomaly=true finds a NaN in one process, and the others would wait for it: use on_nonfinite=stop"
        )
    rows = config.rollout.batch_size // config.algo.minibatches
    if config.shard and rows % count:
        raise UserError(
            f"shard=true: a minibatch of {rows} rows cannot be split into {count} equal shares (rollout.batch_size "
            "over algo.minibatches must be a multiple of the number of processes)"
        )
