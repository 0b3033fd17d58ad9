"""Composing configs outside Hydra's job: checked before anything runs, and inherited from a saved run."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.faults import validate
from rlhf_cli.config.flat import covered, flat, nested
from rlhf_cli.config.folders import check_models, check_there
from rlhf_cli.config.older import as_before, made_before, marks, written
from rlhf_cli.config.own_folder import first, searchpath
from rlhf_cli.config.scale import detected_scale
from rlhf_cli.config.schema import Config, EvalConfig
from rlhf_cli.config.schemas import schema_of
from rlhf_cli.config.section import Section
from rlhf_cli.config.small import settled_sources
from rlhf_cli.config.tracking_schema import listed
from rlhf_cli.config.trust import refuse_code
from rlhf_cli.config.typed import absolute, one_option_each, with_words

_beside = Path(__file__).parents[1] / "conf"
CONF = _beside if _beside.is_dir() else _beside.parents[1] / "conf"
"""In a wheel `conf` lies in the package; in a checkout, beside it."""

CHANGEABLE_ON_RESUME = (
    "resume", "steps", "val.every", "val.metrics", "checkpoint", "stop", "tracking", "device", "objective", "kl_budget",
    "fail_fast", "shard", "on_nonfinite", "profile_step", "detect_anomaly", "rollout.cuda_graphs",
    "rollout.vllm_memory", "weights", "name", "tags", "notes", "trust_config",
)  # fmt: skip

# Our launchers' configs are checked against their plugins' own schemas: what we want, under Hydra's old name for it.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
OmegaConf.register_new_resolver("detected_scale", detected_scale, replace=True)


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: one config a job, and where Hydra will put them."""

    command: str
    jobs: list[Any]
    overrides: list[list[str]]
    """Of each job, without Hydra's own."""
    engine: list[str]
    """Hydra's own overrides, the same for every job: launcher, folders, search path."""
    run_dir: str
    sweep_dir: str
    sweeper: str
    """The class that chooses the jobs: Hydra's basic one, or one that proposes them as results come in."""
    launcher: str
    """The class that runs them."""
    scale: str
    """As it was typed: auto, mini or full."""
    sweeps: tuple[str, ...] = ()
    """Keys for which the config itself lists values to sweep over."""


MOST = 10_000
"""Jobs of one sweep."""


def plan(command: str, overrides: list[str], *, multirun: bool, config_dir: str | None) -> Plan:
    """Compose and check every job of a command line; raises `UserError` before any of them starts."""
    from rlhf_cli.internals.hydra_private import BasicSweeper, GlobalHydra, OverridesParser

    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder")
    first(config_dir)
    engine = [searchpath(config_dir)] if config_dir else []
    _check_experiments(overrides, [CONF, *([Path(config_dir)] if config_dir else [])])
    if not multirun:
        return plan_jobs(command, [overrides], engine)
    with _composer(command):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # glob(…) asks it for options
    parsed = parser.parse_overrides(overrides)
    if several := _several_experiments(parsed):
        return _one_after_another(several, command, config_dir)
    engine += [str(o.input_line) for o in parsed if o.is_hydra_override()]
    if swept := [o.input_line for o in parsed if o.is_hydra_override() and o.is_sweep_override()]:
        raise UserError(f"{swept[0]}: Hydra's own keys are the same for all jobs of a sweep")
    of_jobs = [str(o.input_line) for o in parsed if not o.is_hydra_override()]
    plain = [str(o.input_line) for o in parsed if not o.is_hydra_override() and not o.is_sweep_override()]
    with _composer(command) as composed:
        sweeper = composed([*engine, *plain]).hydra.sweeper
    params = sweeper.get("params") or {}
    if "BasicSweeper" not in sweeper._target_:
        return plan_jobs(command, [plain], engine)  # it proposes jobs as it goes: each is checked when it starts
    at_once = sweeper.get("max_batch_size")
    if at_once is not None and not (isinstance(at_once, int) and at_once > 0):
        raise UserError(f"hydra.sweeper.max_batch_size={at_once}: jobs handed on at once, 1 or more; null: all")
    typed = {o.key_or_group for o in parsed}
    from_file = [f"{key}={value}" for key, value in params.items() if key not in typed]
    split = BasicSweeper.split_arguments(parser.parse_overrides([*from_file, *of_jobs]), None)
    jobs = [list(job) for batch in split for job in batch]
    if not jobs:
        raise UserError(f"this sweep has no job: no option is meant by {' '.join(of_jobs)}")
    if len(jobs) > MOST:
        raise UserError(f"this sweep has {len(jobs):,} jobs, and {MOST:,} at most are checked before the first starts")
    return plan_jobs(command, jobs, engine)


def _several_experiments(parsed: list[Any]) -> list[list[str]]:
    """The command line once for each experiment where it names several, by commas, choice(…) or glob(…): each brings a
    sweep of its own."""
    lines = [str(o.input_line) for o in parsed]
    at = [i for i, o in enumerate(parsed) if o.key_or_group == "experiment" and o.is_discrete_sweep()]
    if not at:
        return []
    if not (names := list(parsed[at[-1]].sweep_string_iterator())):
        raise UserError(f"{lines[at[-1]]}: there is no such experiment")
    return [[*lines[: at[-1]], f"experiment={name}", *lines[at[-1] + 1 :]] for name in names]


def _one_after_another(lines: list[list[str]], command: str, config_dir: str | None) -> Plan:
    """The sweeps of these command lines as one."""
    plans = [plan(command, each, multirun=True, config_dir=config_dir) for each in lines]
    jobs = [job for one in plans for job in one.jobs]
    return replace(plans[0], jobs=jobs, overrides=[typed for one in plans for typed in one.overrides])


def _check_experiments(overrides: list[str], places: list[Path]) -> None:
    """Hydra takes an optional group's option that does not exist for none; we do not."""
    typed = [o.partition("=")[2] for o in overrides if o.startswith("experiment=")]
    if not typed or "(" in typed[-1] or any("hydra.searchpath" in o for o in overrides):
        return  # glob(…) and choice(…) are Hydra's to read
    homes = [place / "experiment" for place in places]
    known = sorted(
        {str(f.relative_to(home).with_suffix("")).replace("\\", "/") for home in homes for f in home.rglob("*.yaml")}
    )
    if typed[-1] == "null":
        raise UserError(f"experiment=null: leave experiment= out, or name one of {', '.join(known)}")
    for name in typed[-1].split(","):
        if name.strip("'\" ") not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean experiment={near[0]}?" if near else ""
            raise UserError(f"experiment={name}: there is no such option.{hint} Allowed: {', '.join(known)}")


def plan_jobs(command: str, jobs: list[list[str]], engine: list[str]) -> Plan:
    """Compose and check these jobs; raises `UserError`."""
    with _composer(command) as composed:
        first = composed([*engine, *jobs[0]])
        each = _each_composed(composed, ([*engine, *job] for job in _told(jobs))) if len(jobs) > 1 else iter([first])
        settled = []
        for config, job in zip(each, jobs, strict=True):
            one_option_each(config)
            settled.append(settle(command, config, job))
    for config in settled:
        check_models(config)
    return Plan(
        command=command,
        jobs=settled,
        overrides=jobs,
        engine=engine,
        run_dir=_expand(first, "hydra.run.dir"),
        sweep_dir=_expand(first, "hydra.sweep.dir"),
        sweeper=_expand(first, "hydra.sweeper._target_"),
        launcher=_expand(first, "hydra.launcher._target_"),
        scale=_expand(first, "hydra.runtime.choices.scale"),
        sweeps=tuple((first.hydra.sweeper.get("params") or {}).keys()),
    )


def _each_composed(composed: Callable[[list[str]], DictConfig], jobs: Iterable[list[str]]) -> Iterator[DictConfig]:
    """Every job's config. What chooses options is composed once a combination; values are laid onto a copy of it."""
    from rlhf_cli.internals.hydra_private import parted_overrides, with_values

    of_options = lru_cache(maxsize=64)(lambda *options: composed([*options]))
    for job in jobs:
        options, values = parted_overrides(job)
        yield with_values(of_options(*options), values)


def _told(jobs: list[list[str]]) -> Iterable[list[str]]:
    """The jobs; where there are many, with a bar while they are gone through (some hundredths of a second each)."""
    if len(jobs) < 20 or not sys.stderr.isatty():
        return jobs
    from rich.console import Console
    from rich.progress import track

    return track(jobs, f"checking {len(jobs)} jobs", console=Console(stderr=True), transient=True)


@contextmanager
def _composer(command: str) -> Iterator[Callable[[list[str]], DictConfig]]:
    """A function from overrides to the composed config of a command, Hydra's part included."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name=command):
        yield lambda job: compose(config_name=command.replace("-", "_"), overrides=job, return_hydra_config=True)


def _expand(config: DictConfig, key: str) -> str:
    return str(OmegaConf.select(config, key))


def settle(command: str, composed: DictConfig, overrides: list[str], *, folder: Path | None = None) -> Any:
    """The checked config of one job: composed, or a saved run's with what was typed on top.

    `folder`: of the training run that begins now; it says what an older release's run takes for keys that it lacks.
    """
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values: dict[str, Any] = OmegaConf.to_container(plain, resolve=True, throw_on_missing=False)  # type: ignore[assignment]
    missing = sorted(OmegaConf.missing_keys(plain))
    if missing:
        fix = " ".join(["rlhf", command, *overrides, f"{missing[0]}=…"])
        raise UserError(f"{missing[0]} must be given{_meaning(missing[0], values)}: {fix}")
    schema = schema_of(command)
    values = settled_sources(absolute(with_words(command, listed(values))))
    validate(values, schema)
    if issubclass(schema, EvalConfig) and values["checkpoint"] not in (None, "none"):
        values = _judged(values, overrides)
    elif command == "train" and values["from"] and values["resume"] in (None, "auto"):
        values = _forked(values, overrides)
    if command == "train" and values["resume"] == "auto":
        if folder and (folder / "config.yaml").is_file():
            values = _gone_on(folder, values, overrides, aloud=True)
    elif command == "train" and values["resume"]:
        values = _gone_on(Path(values["resume"]), values, overrides, aloud=folder is not None)
    return validate(values, schema, typed=_names(overrides))


def _judged(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The config of the run whose checkpoint is named, with what was typed on top."""
    folder = run_folder(values["checkpoint"])
    saved = as_before(saved_config(folder), Config, {})
    saved.pop("checkpoint", None)  # checkpoint.every of the run; here `checkpoint` names one
    saved.pop("resume", None)
    refuse_code(folder, saved, _typed(overrides), trusted=values["trust_config"])
    return _onto(saved, values, overrides)


def _forked(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The config of the run whose policy a new run starts from, with what was typed on top."""
    folder = run_folder(values["from"], "from")
    saved = as_before(saved_config(folder), Config, {})
    refuse_code(folder, saved, _typed(overrides), trusted=values["trust_config"])
    new = _onto(saved, values, [*overrides, "resume", "from", "name", "tags", "notes"])
    if new["actor"] != saved["actor"]:
        raise UserError(f"from={values['from']} brings its own actor: leave actor= away")
    return new


def _gone_on(run: Path, values: dict[str, Any], overrides: list[str], *, aloud: bool) -> dict[str, Any]:
    """What a run goes on with: its saved config (resume=auto: the composed one), where the keys that the saved one
    lacks, or took from before, are as before unless they were typed. Choosing an option types none of its new keys."""
    saved = saved_config(run)
    typed = {key for key in _names(overrides) if not (CONF / key).is_dir()}
    old = as_before(saved, Config, nested(_without(values, typed)))
    filled = _without(added(saved, old), typed)
    gone = added(old, saved)
    if aloud and filled:
        print(made_before("run", filled), flush=True)
    if aloud and gone:
        print(
            f"keys of this run that have another name now, or are gone and meant nothing: {written(gone)}", flush=True
        )
    took = {key: value for key, value in flat(marks(Config)).items() if flat(old).get(key, ...) == value}
    kept = filled | _without(took, typed)
    values = nested(_as_saved(old, flat(nested(_without(values, set(kept)) | kept))))
    return values if values["resume"] == "auto" else _resumed(old, values, overrides)


def _as_saved(saved: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Of flat values, paths in the spelling of the saved config: older releases saved relative ones."""
    before, meant = flat(saved), flat(absolute(saved))
    return {key: before[key] if key in before and meant.get(key) == v else v for key, v in values.items()}


def _without(values: dict[str, Any], prefixes: set[str]) -> dict[str, Any]:
    return {key: value for key, value in flat(values).items() if not covered(key, prefixes)}


def _meaning(key: str, values: dict[str, Any]) -> str:
    """What the comment in the chosen file of a group says of a key, in parentheses; nothing where there is none."""
    group, _, name = key.partition(".")
    path = CONF / group / f"{values[group].get('name')}.yaml" if name else CONF
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    comments = (line.partition("#")[2].strip() for line in lines if line.startswith(f"{name}:"))
    return "".join(f" ({comment})" for comment in comments if comment)


def run_folder(checkpoint: str, key: str = "checkpoint") -> Path:
    """The run folder of a checkpoint folder or of itself; `key`: where it was typed."""
    folder = Path(checkpoint).expanduser()
    check_there(folder, key)
    for candidate in (folder, *folder.absolute().parents[:3]):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(f"{key}={checkpoint}: no run is there (a run folder holds config.yaml and checkpoints/)")


def saved_config(folder: Path) -> dict[str, Any]:
    path = folder.expanduser() / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run is there (no config.yaml). Give the folder that a run printed.")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a run's config")
    return {str(key): value for key, value in values.items()}


def _onto(saved: dict[str, Any], values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The saved config with the typed keys, and the keys that the saved one lacks, on top. An option that is typed
    (reward=vader) is that whole group: nothing of the saved one's stays."""
    typed = _typed(overrides)
    merged = {key: value for key, value in flat(saved).items() if key.partition(".")[0] not in typed}
    for key, value in flat(values).items():
        absent = key not in merged and not any(key.startswith(f"{leaf}.") for leaf in merged)
        if absent or covered(key, typed):  # a section that was not there, as null, is not filled in
            merged[key] = value
    return nested(merged)


def added(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Of two configs, the keys that only the second has."""
    return {key: value for key, value in flat(after).items() if key not in flat(before)}


def changed(saved: dict[str, Any], config: Section) -> dict[str, tuple[Any, Any]]:
    """What a saved config, of this release or an older one, has otherwise than this one and may not on resume."""
    now = config.model_dump(by_alias=True)
    return difference(as_before(saved, type(config), now), now)


def _resumed(saved: dict[str, Any], values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    merged = nested(_as_saved(saved, flat(_onto(saved, values, overrides))))
    differences = difference(saved, as_before(merged, Config, {}))
    if differences:
        listed = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in differences.items())
        raise UserError(
            f"resume={values['resume']}: these may not change on resume:\n{listed}\n"
            f"May change: {', '.join(CHANGEABLE_ON_RESUME[1:])}. Start a new run for the rest."
        )
    return merged


def difference(saved: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ and may not change on resume."""
    a, b = flat(saved), flat(new)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not covered(key, set(CHANGEABLE_ON_RESUME))
    }


def _typed(overrides: list[str]) -> set[str]:
    keys = _names(overrides)
    return {""} if "experiment" in keys else keys


def _names(overrides: list[str]) -> set[str]:
    return {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides}
