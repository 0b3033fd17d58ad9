"""A run that is under way: what it works with, one step of it, and what is kept of it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.config.compose import changed
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.tracking.compose import Trackers, make_trackers
from rlhf_cli.training import distributed
from rlhf_cli.training.best import Best
from rlhf_cli.training.checkpoint import check_room, load_trainer, newest, prune, save_checkpoint
from rlhf_cli.training.folder import check_record, first_line
from rlhf_cli.training.guards import Guards
from rlhf_cli.training.hacking import HackingWatch, account
from rlhf_cli.training.nonfinite import finite_judge, finite_step
from rlhf_cli.training.setup import Lab, make_lab
from rlhf_cli.training.state import State, make_state
from rlhf_cli.training.status import write_status


@dataclass
class Session:
    config: Config
    folder: Path
    lab: Lab
    state: State
    trackers: Trackers
    steps: range
    """What is left to do; step 0 is the validation of the untrained actor."""
    best: Best
    watch: HackingWatch
    guards: Guards
    origin: dict[str, Any]
    """What a checkpoint remembers of where it was made."""
    alerted: bool
    """Whether the hacking was already reported."""

    def take(self, step: int) -> dict[str, float]:
        """Train, validate if it is time, log; returns the step's metrics."""
        say = self.trackers.message
        metrics = finite_step(self.lab, self.state, step, self.folder, say) if step else {}
        for warning in self.guards.warnings(metrics):
            say(warning)
        if self.validates(step):
            judged, rows = finite_judge(self.lab, step, self.folder, say)
            metrics |= judged | (self.watch.look(step, judged, rows) if rows else {})
            self.trackers.samples(step, rows)
        self.trackers.log(step, metrics)
        self.tell("running", step)
        if self.watch.onset is not None and not self.alerted:
            self.alerted = True
            self.trackers.alert(
                f"reward hacking from step {self.watch.onset}", account(metrics, self.folder / "samples.jsonl")
            )
        return metrics

    def validates(self, step: int) -> bool:
        return step == 0 or step == self.config.steps or _due(step, self.config.val.every)

    @property
    def hacked(self) -> bool:
        """Whether the run is to stop because its reward is hacked."""
        return self.config.stop.on_hacking and self.watch.onset is not None

    def due(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint is to be saved, were the run to go on."""
        stops = self.config.stop.on_hacking
        if stops and self.watch.suspicious:
            return False  # the checkpoint from before stays the newest, and the best
        best = self.validates(step) and self.best.beaten(step, metrics)
        return best or (step > 0 and _due(step, self.config.checkpoint.every)) or (stops and self.validates(step))

    def save(self, step: int) -> None:
        extra = {"wandb_run_id": self.trackers.wandb_run_id, "best": self.best.known, **self.origin}
        saved = save_checkpoint(self.folder, step, self.lab, self.state, extra)
        if distributed.is_first():
            wanted = self.config.checkpoint
            self.best.name(saved)
            prune(self.folder, keep_last=wanted.keep_last, keep_every=wanted.keep_every, best=self.best.step)

    def tell(self, state: str, step: int) -> None:
        """Write status.json."""
        if distributed.is_first():
            write_status(self.folder, state, step=step, steps=self.config.steps)


def open_session(config: Config, folder: Path, checkpoint: Path | None, group: str | None) -> Session:
    """Load everything, from the checkpoint where there is one."""
    notify(first_line(config))
    trainer: dict[str, Any] | None = None
    saved: dict[str, Any] = {"step": 0}
    if checkpoint:
        trainer, saved = load_trainer(checkpoint)
    start = int(saved["step"])
    if checkpoint:
        distributed.first(lambda: check_record(folder, start, notify))
    lab = distributed.first_then_the_rest(lambda: _lab(config, checkpoint))
    if checkpoint and lab.continual:
        lab.continual.restore(checkpoint)
    if config.shard:
        for model in (lab.actor, lab.critic, lab.reference):
            distributed.shard(model, lab.compute.device)
    state = make_state(config, lab)
    origin = {"environment": environment(lab), "prompts": fingerprint(lab), "config": config.model_dump(by_alias=True)}
    if trainer is not None:
        _same_origin(saved, origin, config, notify)
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
    return Session(
        config=config,
        folder=folder,
        lab=lab,
        state=state,
        trackers=trackers,
        steps=range(start + 1 if checkpoint else start, config.steps + 1),
        best=Best.of(config.checkpoint, saved.get("best")),
        watch=watch,
        guards=Guards(),
        origin=origin,
        alerted=watch.onset is not None,
    )


def _lab(config: Config, checkpoint: Path | None) -> Lab:
    """The lab, with what the checkpoint has in place of the config's models."""
    algo, at = config.algo, checkpoint or Path()

    def kept(name: str, wanted: Any) -> str | None:
        return str(at / name) if checkpoint and wanted else None

    return make_lab(
        config,
        notify,
        actor=kept("actor", True),
        critic=kept("critic", algo.needs_critic),
        reference=kept("reference", algo.steps_per_iteration),
        reward=kept("reward_model", algo.retrain_epochs),
    )


def notify(text: str) -> None:
    print(text, flush=True)


def newest_words(folder: Path) -> str:
    """What a person who finds the run stopped may go on from."""
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


def _same_origin(saved: dict[str, Any], now: dict[str, Any], config: Config, notify: Callable[[str], None]) -> None:
    """Refuse a checkpoint of other prompts or of another config; say where another environment may change the last
    digits."""
    if differs := changed(saved.get("config", now["config"]), config):
        listed = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in differs.items())
        raise UserError(f"config.yaml is no longer that of the checkpoint:\n{listed}\nPut it back, or start a new run")
    if saved.get("prompts", now["prompts"]) != now["prompts"]:
        raise UserError(
            "the prompts are no longer those of the checkpoint: data.source, the labeler or the tokenizer changed on "
            "the disk. Put them back, or start a new run"
        )
    steps, schedule = saved.get("config", now["config"])["steps"], now["config"]["optim"]["schedule"]
    if steps != now["config"]["steps"] and schedule != "constant":
        notify(f"steps was {steps} and is {now['config']['steps']}: the {schedule} learning rate now ends there")
    for key, value in now["environment"].items():
        before = saved.get("environment", {}).get(key, value)
        if before != value:
            notify(f"{key} was {before} at the checkpoint and is {value}: the last digits of the metrics may differ")


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
