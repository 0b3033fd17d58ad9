"""A run in progress: its objects, one step, its checkpoints and logs."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.build.experiment import Experiment, Saved, make_experiment, to_learn
from rlhf_cli.config.compose import changed
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.memory import peak_mb
from rlhf_cli.runs.best import Best, check_known
from rlhf_cli.runs.checkpoint import check_room, load_trainer, newest, prune, restore_trainer, save_checkpoint, step_of
from rlhf_cli.runs.folder import check_record, first_line
from rlhf_cli.runs.fork import called, forked
from rlhf_cli.runs.hacking_answers import Answers
from rlhf_cli.runs.hacking_watch import HackingWatch
from rlhf_cli.runs.inspection import anomalies, profiled
from rlhf_cli.runs.nonfinite import report_nonfinite
from rlhf_cli.runs.status import write_status
from rlhf_cli.runs.stop_rules import StopRules
from rlhf_cli.runs.warnings import Warnings
from rlhf_cli.tracking.trackers import Trackers, make_trackers
from rlhf_cli.training.clock import clock
from rlhf_cli.training.policy import zero_grad
from rlhf_cli.training.validation import validate


@dataclass
class Session:
    config: Config
    folder: Path
    experiment: Experiment
    trackers: Trackers
    steps: range
    """The remaining ones; step 0 is the validation of the untrained actor."""
    best: Best
    watch: HackingWatch
    warnings: Warnings
    origin: dict[str, Any]
    """Config, prompts and versions: saved with a checkpoint, compared on resume."""
    alerted: bool
    """Whether the hacking was already reported."""
    answers: Answers
    rules: StopRules
    back: Path | None = None
    """The checkpoint that the run is to go back to."""

    def take(self, step: int) -> dict[str, float]:
        """Train, validate if it is time, log; returns the step's metrics."""
        say = self.trackers.message
        metrics = self.learn(step) if step else {}
        for warning in self.warnings.after(metrics):
            say(warning)
        if self.validates(step):
            judged, rows = self.validate(step)
            metrics |= judged | (self.watch.look(step, judged, rows) if rows else {})
            self.trackers.samples(step, rows)
            distributed.first(lambda: self.rules.look(step, metrics))
            if step == 0:
                check_known("objective", self.config.objective, judged)
        self.trackers.log(step, metrics)
        self.tell("running", step)
        if self.watch.onset is not None and not self.alerted:
            self.alerted = True
            self.trackers.alert(
                f"reward hacking from step {self.watch.onset}",
                self.watch.account(metrics, self.folder / "samples.jsonl"),
            )
        if self.watch.onset is not None and self.watch.indices[-1][0] == step:
            self.answer(step, self.watch.onset, metrics)
        return metrics

    def answer(self, step: int, onset: int, metrics: dict[str, float]) -> None:
        """Do what stop.on_hacking says, and say so."""
        say, answers, algo = self.trackers.message, self.answers, self.experiment.algo
        match answers.next():
            case "warn":
                say(f"reward hacking at step {step}: {self.watch.account(metrics, self.folder / 'samples.jsonl')}")
            case "raise_beta":
                beta = answers.raised(algo)
                answers.note("raise_beta", step=step, onset=onset, beta=beta)
                self.watch.since = answers.last
                say(f"reward hacking from step {onset}: algo.beta is {beta:g} from step {step + 1} on")
            case "rollback":
                self.back = distributed.first(lambda: answers.back_to(onset))
                if self.back is None:
                    say("stop.on_hacking=rollback: there is no checkpoint from before, so the run stops")
                    answers.kind = "stop"
                    return
                beta, to = answers.raised(algo), step_of(self.back)
                answers.note("rollback", step=step, onset=onset, beta=beta, to=to)
                say(f"reward hacking from step {onset}: back to step {to}, with algo.beta {beta:g}")

    def learn(self, step: int) -> dict[str, float]:
        """A training step with its timings, peak memory, the outer loop, and what is done about non-finite numbers."""
        x, looks = self.experiment, self.config.profile_step == step and distributed.is_first()
        try:
            looking = profiled(looks, self.folder / "profile", notify)  # a tracker's messages have no columns
            with anomalies(self.config.detect_anomaly), looking, clock() as seconds:
                metrics, rollouts = x.step(step)
                if x.outer:
                    metrics |= x.outer.after(step, x.policy.model, x.reference, rollouts.texts)
        except NonFinite as fault:
            zero_grad(x.policy, x.critic)
            report_nonfinite(fault, x, self.config, step, self.folder, self.trackers.message)
            return {"train/nonfinite": 1.0}
        tokens = int(rollouts.rollout.lengths.sum())
        metrics |= seconds | {"throughput/tokens_per_s": tokens / sum(seconds.values())}
        return metrics | {"memory/peak_mb": peak_mb(x.compute.device)}

    def validate(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        x, size, lists = self.experiment, self.config.val.batch_size, self.watch.lists
        edits = self.config.hacking.edits
        try:
            return validate(
                x.policy, x.reference, x.test, x.reward, x.gold,
                batch_size=size, lists=lists, edits=edits, metrics_of_users=x.metrics,
            )  # fmt: skip
        except NonFinite as fault:
            report_nonfinite(fault, x, self.config, step, self.folder, self.trackers.message)
            return {"val/nonfinite": 1.0}, []

    def validates(self, step: int) -> bool:
        return step == 0 or step == self.config.steps or _due(step, self.config.val.every)

    @property
    def hacked(self) -> bool:
        """Whether the run is to stop because its reward is hacked."""
        return self.watch.onset is not None and self.answers.next() == "stop"

    def due(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint is due after this step."""
        stops = self.answers.saves_before
        if stops and self.watch.suspicious:
            return False  # the checkpoint from before stays the newest, and the best
        best = self.validates(step) and self.best.beaten(step, metrics)
        return best or (step > 0 and _due(step, self.config.checkpoint.every)) or (stops and self.validates(step))

    def save(self, step: int) -> None:
        extra = {"wandb_run_id": self.trackers.wandb_run_id, "best": self.best.known, **self.origin}
        extra["answers"] = len(self.answers.given)
        merge = self.config.checkpoint.merge
        saved = save_checkpoint(self.folder, step, self.experiment, extra, merge=merge)
        if distributed.is_first():
            wanted = self.config.checkpoint
            self.best.name(saved)
            prune(self.folder, keep_last=wanted.keep_last, keep_every=wanted.keep_every, best=self.best.step)

    def tell(self, state: str, step: int, reason: str | None = None) -> None:
        """Write status.json; `reason`: why the run is done before its last step."""
        if distributed.is_first():
            write_status(self.folder, state, step=step, steps=self.config.steps, reason=reason)


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
    loaded = distributed.first_then_the_rest(
        lambda: make_experiment(
            config, notify, saved=forked(config, notify) if checkpoint is None else Saved.of(checkpoint, config)
        )
    )
    if checkpoint and loaded.outer:
        loaded.outer.restore(checkpoint)
    experiment = to_learn(loaded, config)
    origin = {
        "environment": environment(experiment),
        "prompts": fingerprint(experiment),
        "config": config.model_dump(by_alias=True),
    }
    if trainer is not None:
        _same_origin(saved, origin, config, notify)
        restore_trainer(experiment, trainer)
        notify(f"resumed at step {start} of {config.steps}")
    distributed.first(lambda: check_room(folder, experiment, config, start=start))
    trackers = make_trackers(
        config.tracking.to if distributed.is_first() else None,
        folder,
        config.model_dump(by_alias=True),
        steps=config.steps,
        resume_step=start if checkpoint else None,
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=called(config, folder, group),
        group=config.tracking.group or group,
        run_id=saved.get("wandb_run_id"),
        tags=config.tags,
        notes=config.notes,
    )
    watch, answers = watched(config, folder, start if checkpoint else None)
    if config.hacking.outliers:
        watch = watch.looking_for_outliers(experiment.reward)
    answers.catch_up(experiment.algo, int(saved.get("answers", 0)))
    return Session(
        config=config,
        folder=folder,
        experiment=experiment,
        trackers=trackers,
        steps=range(start + 1 if checkpoint else start, config.steps + 1),
        best=Best.of(config.checkpoint, saved.get("best")),
        watch=watch,
        warnings=Warnings(precision="bf16" if experiment.compute.dtype.itemsize == 2 else "fp32"),
        origin=origin,
        alerted=watch.onset is not None,
        answers=answers,
        rules=distributed.first(lambda: StopRules.of(folder, config.stop.rules, config.stop.patience)),
    )


def watched(config: Config, folder: Path, start: int | None) -> tuple[HackingWatch, Answers]:
    """What the run in this folder knows of hacking, and has done about it, up to the step it goes on from."""
    wanted = config.stop
    watch = distributed.first(lambda: HackingWatch.asked(config).of(folder))
    answers = distributed.first(
        lambda: Answers.of(folder, kind=wanted.on_hacking, factor=wanted.raise_by, most=wanted.times, start=start)
    )
    watch.since = answers.last
    return watch, answers


def notify(text: str) -> None:
    print(text, flush=True)


def newest_words(folder: Path) -> str:
    """Which checkpoint a stopped run can be resumed from, in words."""
    found = newest(folder, print)
    return f"the checkpoint from before is kept: {found}" if found else "no checkpoint was saved before"


def environment(experiment: Experiment) -> dict[str, Any]:
    """What bit-exact reproducibility depends on."""
    import torch
    import transformers

    versions: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"processes": distributed.world(), "processor": torch.backends.cpu.get_cpu_capability()}
    return {**versions, "threads": torch.get_num_threads(), "device": experiment.compute.device.type}


def fingerprint(experiment: Experiment) -> str:
    """A hash of all prompts' token ids."""
    return hashlib.sha256(json.dumps([experiment.data.prompts.ids, experiment.test.ids]).encode()).hexdigest()


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
