"""A sweep is a written list of jobs. Running it is idempotent: jobs that are done are left alone."""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_cli.config.compose import (
    CHANGEABLE_ON_RESUME,
    CONF,
    Plan,
    added,
    changed,
    flat,
    nested,
    plan_jobs,
    schema_of,
)
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.older import as_before, made_before, written
from rlhf_cli.config.own_folder import first, of_engine
from rlhf_cli.config.refused import CLUSTERS
from rlhf_cli.config.schema import Config
from rlhf_cli.runs.status import Interrupted, alive, here, mark_reported, read_status, write_atomic
from rlhf_cli.sweeps.table import in_common
from rlhf_cli.tracking.text import as_typed, shell

RECORD = "sweep.json"


@dataclass(frozen=True)
class Job:
    """What a launcher calls, in this process or in another, with the composed config of one job."""

    command: str
    began: float
    """When the sweep did: `fail_fast` looks at what failed since."""
    in_process: bool
    threads: int | None
    """Of torch, where several jobs share the cores."""
    numbers: tuple[int, ...]
    """Of the jobs that are to run now, in their order."""
    common: tuple[str, ...] = ()
    """Overrides that all jobs have, and that are said once."""

    def __call__(self, cfg: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig

        from rlhf_cli.runs.folder import recorded
        from rlhf_cli.runs.signals import late_signal
        from rlhf_cli.runs.status import write_status

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        status = read_status(folder)
        if _finished(status, cfg.steps if self.command == "train" else 0) or (alive(status) and here(status)):
            return None  # another engine got there first
        if cfg.fail_fast and any(_failed_since(self.began, other) for other in folder.parent.iterdir()):
            return None
        typed = [o for o in hydra.overrides.task if o != "resume=auto" and o not in self.common]
        at = f"{self.numbers.index(int(folder.name)) + 1} of {len(self.numbers)}"
        print(f"job {folder.name} ({at}): {as_typed(typed)}", flush=True)
        if self.threads and "OMP_NUM_THREADS" not in os.environ:
            import torch

            torch.set_num_threads(self.threads)
        # a training run records itself, and its folder's lock says whose it is
        itself = self.command in ("train", "reward-train")
        if not itself:
            write_status(folder, "running", step=0, steps=0)
        try:
            with nullcontext() if itself else recorded(folder):
                result = import_module(f"rlhf_cli.commands.{self.command.replace('-', '_')}").run(cfg)
            if not itself:
                write_status(folder, "done", step=0, steps=0)
            if self.in_process and (late := late_signal()):
                raise Interrupted(late)  # this job needed no stop any more; the sweep does
            return result
        except (Interrupted, KeyboardInterrupt) as stop:
            if os.environ.get("SUBMITIT_EXECUTOR"):
                os.kill(os.getpid(), signal.SIGUSR2)  # submitit puts the job back into the queue
            if self.in_process:
                raise  # out of the launcher: the whole sweep stops
            raise RuntimeError(f"{type(stop).__name__}: {stop}") from None
        except UserError as error:
            print(f"job {folder.name} failed: {error}", file=sys.stderr, flush=True)
            mark_reported(error)
            raise
        except Exception as error:
            if self.in_process:
                raise
            # not every exception survives the way from one process to another
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        finally:
            _free_memory()


def _failed_since(began: float, folder: Path) -> bool:
    status = read_status(folder)
    return status.get("state") == "failed" and status["heartbeat"] >= began


def _free_memory() -> None:
    """One process runs many jobs: the models of one must be gone before the next one's come."""
    import gc

    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def start(plan: Plan, typed: list[str]) -> int:
    """Write the record of a new sweep, run it; returns the exit code."""
    folder = Path(plan.sweep_dir)
    if any(job.resume not in (None, "auto") for job in plan.jobs):
        raise UserError("resume= names one run; a sweep goes on with: rlhf sweep resume=<sweep folder>")
    if (folder / RECORD).exists():
        if all(job.resume == "auto" for job in plan.jobs):
            return resume(str(folder), plan.engine)
        again = f"rlhf sweep resume={shell(folder)}"
        raise UserError(f"{folder} already holds a sweep: {again}, or another hydra.sweep.dir=")
    _needs(plan)
    written = record(plan, typed)
    _no_twins(written["jobs"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECORD, json.dumps(written, indent=1) + "\n")
    return run(plan, folder)


def set_id_aside() -> None:
    """Under one WANDB_RUN_ID all jobs of a sweep would be one W&B run."""
    if os.environ.pop("WANDB_RUN_ID", ""):
        print("WANDB_RUN_ID is set aside: under one id all jobs of a sweep would be one W&B run", flush=True)


def _no_twins(jobs: list[dict[str, Any]]) -> None:
    """Raise UserError where two jobs have one config: as two seeds they would have no variance."""
    seen: dict[str, int] = {}
    for job in jobs:
        number, typed = job["job"], " ".join(job["overrides"])
        first = seen.setdefault(job["config_hash"], number)
        if first != number:
            raise UserError(f"job {number} of the sweep is job {first} once more ({typed}): a value stands there twice")


def record(plan: Plan, typed: list[str]) -> dict[str, Any]:
    """sweep.json: what was typed, what all jobs' configs share, and each job's overrides and the rest of its config."""
    configs = [flat(job.model_dump(by_alias=True)) for job in plan.jobs]
    shared = {key: value for key, value in configs[0].items() if all(c.get(key, ...) == value for c in configs)}
    jobs = [
        {
            "job": number,
            "overrides": overrides,
            "config": {key: value for key, value in config.items() if key not in shared},
            "config_hash": config_hash(config),
        }
        for number, (overrides, config) in enumerate(zip(plan.overrides, configs, strict=True))
    ]
    return {"command": plan.command, "typed": typed, "engine": plan.engine, "shared": shared, "jobs": jobs}


def config_hash(config: dict[str, Any]) -> str:
    """A hash of a flat config, without the keys that may change on resume."""
    kept = {k: v for k, v in config.items() if not any(k == c or k.startswith(c + ".") for c in CHANGEABLE_ON_RESUME)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def read_record(folder: Path) -> dict[str, Any]:
    """sweep.json; raises UserError where there is none to read."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found["jobs"][0]["config_hash"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: no sweep is there ({RECORD} cannot be read: {error})") from None
    return found


def resume(place: str, typed: list[str]) -> int:
    """Run what is missing or failed in a sweep folder, go on with what was cut off; returns the exit code.

    `typed` overrides are laid on top: another launcher, or a key that may change on resume.
    """
    folder = Path(place).expanduser()
    saved = read_record(folder)
    engine = [o for o in typed if _key(o).startswith("hydra")]
    on_top = [o for o in typed if o not in engine]
    replaced = {_key(o) for o in engine} | {"hydra.sweep.dir"}
    if "hydra/launcher" in replaced:
        replaced |= {_key(o) for o in saved["engine"] if _key(o).startswith("hydra.launcher.")}
    engine = [*(o for o in saved["engine"] if _key(o) not in replaced), *engine, f"hydra.sweep.dir='{folder}'"]
    configs = [nested(saved["shared"] | job["config"]) for job in saved["jobs"]]
    jobs = [[*overrides, *on_top] for overrides in _as_before(saved, configs)]
    first(of_engine(engine))
    again = plan_jobs(saved["command"], jobs, engine)
    faults = []
    for number, (config, now) in enumerate(zip(configs, again.jobs, strict=True)):
        differs = changed(config, now).items()
        faults += [f"  job {number}: {key}: {old!r} -> {new!r}" for key, (old, new) in differs]
    if faults:
        more = [f"  … and {len(faults) - 20} more"] if len(faults) > 20 else []
        listed = "\n".join(faults[:20] + more)
        raise UserError(
            f"resume={shell(folder)}: the configs of this sweep are not what they were:\n{listed}\n"
            f"May change: {', '.join(CHANGEABLE_ON_RESUME[1:])}, and Hydra's own keys. Else start a new sweep."
        )
    _needs(again)
    return run(again, folder)


def _as_before(saved: dict[str, Any], configs: list[dict[str, Any]]) -> list[list[str]]:
    """Each job's overrides, and those that make keys which its recorded config lacks mean as before: jobs that have not
    begun are to be like those that have."""
    jobs: list[list[str]] = []
    all_filled: dict[str, Any] = {}
    for job, config in zip(saved["jobs"], configs, strict=True):
        old = as_before(config, schema_of(saved["command"]), {})
        filled, gone = added(config, old), added(old, config)
        all_filled |= filled
        kept = [o for o in job["overrides"] if _key(o) not in gone]
        jobs.append([*kept, *(f"++{written({key: value})}" for key, value in filled.items())])
    if all_filled:
        print(made_before("sweep", all_filled), flush=True)
    return jobs


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def run(plan: Plan, folder: Path) -> int:
    """Launch the jobs of a sweep that are not done; write and print its table; returns the exit code."""
    if len(plan.jobs) > 1:
        set_id_aside()
    from rlhf_cli.config.errors import INTERRUPTED
    from rlhf_cli.sweeps.table import show

    code = 0
    with _only_one(folder):
        numbers = [n for n, job in enumerate(plan.jobs) if not _settled(folder / str(n), job)]
        for number in numbers:
            _make_room(folder / str(number), plan.command)
        if len(numbers) < len(plan.jobs):
            print(f"{len(plan.jobs) - len(numbers)} of {len(plan.jobs)} jobs stay as they are", flush=True)
        if numbers:
            print(f"{len(numbers)} {'job' if len(numbers) == 1 else 'jobs'} to run, in {folder}", flush=True)
        try:
            with _heeding_signals() if "basic" not in plan.launcher else nullcontext():
                launch(plan, folder, numbers)
        except Interrupted as stop:
            code = INTERRUPTED[stop.signal]
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            print(f"rlhf: the launcher gave up: {type(error).__name__}: {error}", file=sys.stderr)
            code = 1
        code = max(code, show(folder))
        if code:
            print(f"run what is not done: rlhf sweep resume={shell(folder)}", flush=True)
    return code


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """Where the jobs are other processes: SIGTERM and a closed terminal end the waiting for them, and the table is
    shown. The jobs' own processes end with this one; what they saved stands."""

    def stop(number: int, _frame: Any) -> None:
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settled(folder: Path, config: Any) -> bool:
    """Whether a job need not be run: it is done, with all its steps, or running."""
    status = read_status(folder)
    return _finished(status, config.steps if type(config) is Config else 0) or alive(status)


def _finished(status: dict[str, Any], steps: int) -> bool:
    """Done, and with as many steps as are asked for now."""
    return status.get("state") == "done" and bool(status["step"] >= steps)


def _make_room(folder: Path, command: str) -> None:
    """Commands that cannot resume start again; their old folder is renamed."""
    if command == "train" or not folder.exists():
        return
    aside = next(p for n in range(1, 1000) if not (p := folder.with_name(f"{folder.name}.before{n}")).exists())
    folder.rename(aside)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process is running this sweep") from None
        yield


def launch(plan: Plan, folder: Path, numbers: list[int]) -> None:
    """Hand the jobs to Hydra's launcher, each for its own folder. A job's failure is in its status, not raised."""
    from hydra.types import HydraContext, RunMode

    from rlhf_cli.internals.hydra_private import Callbacks, GlobalHydra, Hydra, Plugins, create_config_search_path

    if not numbers:
        return
    name = plan.command.replace("-", "_")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(name, create_config_search_path(str(CONF)))
    try:
        engine = [o for o in plan.engine if _key(o) != "hydra.sweep.dir"]
        engine += [f"hydra.sweep.dir='{folder}'", "hydra.mode=MULTIRUN"]
        first = [o for o in plan.overrides[numbers[0]] if o]
        cfg = hydra.compose_config(config_name=name, overrides=[*engine, *first], run_mode=RunMode.MULTIRUN)
        callbacks = Callbacks(cfg)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
        at_once = concurrent(cfg.hydra.launcher, len(numbers))
        in_process = "basic" in cfg.hydra.launcher._target_
        threads = max(1, cores() // at_once) if not in_process and at_once else None
        common = in_common(plan.overrides)
        if common:
            print(f"all jobs: {as_typed(common)}", flush=True)
        job = Job(plan.command, time.time(), in_process, threads, tuple(numbers), tuple(common))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=cfg)
        callbacks.on_multirun_start(config=cfg, config_name=name)
        # submitit's local executor starts all that it is given at once
        batch = cfg.hydra.sweeper.max_batch_size or (at_once if "LocalLauncher" in cfg.hydra.launcher._target_ else 0)
        goes_on = ["resume=auto"] if plan.command == "train" else []
        for at in range(0, len(numbers), batch or len(numbers)):
            chosen = numbers[at : at + (batch or len(numbers))]
            overrides = [[*plan.overrides[n], *goes_on, f"hydra.sweep.subdir='{n}'"] for n in chosen]
            launcher.launch(overrides, initial_job_idx=chosen[0])
        callbacks.on_multirun_end(config=cfg, config_name=name)
    finally:
        GlobalHydra.instance().clear()


def cores() -> int:
    """Of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def concurrent(launcher: DictConfig, jobs: int) -> int:
    """How many jobs share this machine's cores; 0 where the launcher's own cluster shares them out."""
    kind = launcher._target_.rpartition(".")[2]
    match kind:
        case "JoblibLauncher":
            wanted = int(launcher.n_jobs)
            return min(jobs, wanted if wanted > 0 else max(1, cores() + 1 + wanted))
        case "LocalLauncher":
            return min(jobs, max(1, cores() // (launcher.cpus_per_task or 1)))
        case "BasicLauncher":
            return 1
    return 0


def _needs(plan: Plan) -> None:
    """What a launcher asks for: its package, and on a cluster a scale that was decided here."""
    from importlib.util import find_spec

    names = plan.launcher.split(".")
    for depth in (1, 2):
        if find_spec(".".join(names[:depth])) is None:
            extra = names[1].removeprefix("hydra_").removesuffix("_launcher")
            raise UserError(f"this launcher is not installed: pip install 'rlhf[{extra}]'")
    if plan.scale == "auto" and plan.launcher.endswith(CLUSTERS):
        raise UserError(
            "scale=auto would be decided anew on each node of the cluster, and here it may be another: "
            "name it, scale=full or scale=mini"
        )
