"""What is refused by the look of a command line, before Hydra composes it: its own words for these say nothing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_cli.config.compose import CONF, Plan, plan
from rlhf_cli.config.dotted import function_named
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.typed import FOLDERS, ONE_OPTION, one_option_of

CLUSTERS = ("SlurmLauncher", "RayLauncher")
"""Launchers whose jobs run on other machines, which may have other modules than this one."""


def planned_of(command: str, args: Any) -> Plan:
    """The plan of a command line that Hydra's parser read. Raises UserError where it is refused."""
    check_flags(args.config_path, args.config_name)
    check_typed(args.overrides, CONF)
    planned = plan(command, args.overrides, multirun=args.multirun, config_dir=args.config_dir)
    if command == "train":
        check_functions(planned.jobs, planned.launcher)
    return planned


def check_typed(overrides: list[str], conf: Path) -> None:
    """Raise UserError for a group without an option (critic=null, reward=) or with a list of them, and for a folder
    without a name (resume=)."""
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        value = value.strip("'\" ")
        if not equals:
            continue
        if key in FOLDERS and not value:
            raise UserError(f"{key}= names no folder: give one, or leave {key}= out")
        if value.startswith("[") and key in ONE_OPTION:
            raise UserError(f"{override}: {one_option_of(key)}")
        folder = conf / key
        if value in ("", "null") and key and folder.is_dir() and not key.startswith(("experiment", "hydra")):
            options = sorted(file.stem for file in folder.glob("*.yaml"))
            fix = f"type {key}=none" if "none" in options else f"leave {key}= out for the default"
            raise UserError(f"{override}: this is no option of {key}; {fix}. Allowed: {', '.join(options)}")


def check_flags(config_path: str | None, config_name: str | None) -> None:
    """Raise UserError for flags of Hydra's that would put another config in the place of the command's own."""
    typed = "--config-path" if config_path else "--config-name" if config_name else None
    if typed:
        raise UserError(
            f"{typed}: a command has its own config. For options and experiments of yours beside it: "
            "--config-dir <folder> (a folder with experiment/mine.yaml is asked for by experiment=mine)"
        )


def check_functions(jobs: Iterable[Any], launcher: str) -> None:
    """Raise UserError for a function that a job names and that is not there, or takes other arguments: a model takes
    long to load, and an import does not."""
    if launcher.endswith(CLUSTERS):
        return
    named: dict[tuple[str, str, int], None] = {}
    for config in jobs:
        judges = [*config.reward.all_sources.values(), config.gold, *config.gold.others.values()]
        named |= {("reward.fn", judge.fn, 2): None for judge in judges if judge.fn}
        if config.algo.loss:
            named["algo.loss", config.algo.loss, 4] = None
    for key, dotted, arguments in named:
        function_named(dotted, key, arguments=arguments)
