"""`rlhf <command> [overrides]`: pick the command, check its configs, hand over to Hydra. Imports no torch."""

import io
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from rlhf_cli import __version__
from rlhf_cli.config.arguments import parted, quoted
from rlhf_cli.config.errors import INTERRUPTED, RunFailed, UserError
from rlhf_cli.streams import outlive_readers, processes_started

COMMANDS = {
    "train": "train a policy with PPO, GRPO and their relatives",
    "eval": "judge a checkpoint (or the untrained actor) on the test prompts",
    "sample": 'read what a policy writes: rlhf sample "This movie is" checkpoint=<run>',
    "compare": "two checkpoints side by side: rlhf compare <run> <run>",
    "frontier": "reward against KL: what runs reached, and what could have been reached",
    "audit": "what raises a reward without raising gold: rlhf audit reward=vader",
    "probe": "how reward models judge texts, bare and wrapped as a chat",
    "data": "build the prefix data set and show it",
    "reward-train": "train a reward model on ranked responses, for reward=learned",
    "classifier-train": "train a sentiment classifier on labelled reviews, for reward= and gold=",
    "sweep": "train --multirun; goes on after a crash: rlhf sweep resume=<sweep folder>",
    "report": "one page of what runs show: rlhf report <folder> …",
    "runs": "list the runs under outputs/: state, score, KL, hacking index, age",
    "configs": "the configs that ship: list, show, copy them into a folder of yours",
    "completion": "tab completion for your shell: rlhf completion install",
    "models": "list the models; build the miniatures and say how good they are",
    "doctor": "is this machine ready? what to fix",
}


SWEEP_HELP = """rlhf sweep: `rlhf train --multirun`, which goes on where it was cut off. A key with several values,
or an experiment that lists them, makes a job of each combination. Keys and groups are those of rlhf train, below.

  rlhf sweep experiment=sweep_beta
  rlhf sweep algo.beta=0.02,0.1 seed=0,1,2
  rlhf sweep resume=<sweep folder>          run the jobs that are not done
  rlhf sweep --dry-run algo.beta=0.02,0.1   the jobs and what they will take; nothing runs
  rlhf sweep wandb experiment=sweep_beta    the definition of a W&B sweep

"""


DRY_RUN, JSON = "--dry-run", "--json"


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 the run failed, 2 bad config or arguments, 129/130/143 interrupted."""
    outlive_readers()
    try:
        sys.exit(dispatch(sys.argv[1:]))
    except KeyboardInterrupt:  # before there was anything to lose
        sys.exit(130)


def dispatch(argv: list[str]) -> int:
    """The exit code of a command line; nothing of it is left for the next one of this process."""
    from rlhf_cli.config import own_folder, typed

    try:
        return _dispatched(argv)
    finally:
        typed.words.clear()
        own_folder.first(None)


def _dispatched(argv: list[str]) -> int:
    if (commands := _commands_to_complete(argv)) is not None:
        print("\n".join(commands))
        return 0
    argv = _completing(argv)
    if not _leads():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    match argv:
        case [] | ["--help" | "-h" | "help", *_]:
            print(usage())
            return 0
        case ["--version" | "-V", *_]:
            print(f"rlhf {__version__}")
            return 0
        case ["sweep", *rest]:
            return sweep(rest)
        case ["configs", *rest]:
            from rlhf_cli.commands.configs import main as configs

            return _answered(lambda: configs(rest))
        case ["completion", *rest]:
            from rlhf_cli.commands.completion import main as completion

            return _answered(lambda: completion(rest, dispatch))
        case [command, *rest] if command in COMMANDS:
            return run(command, rest)
        case [command, *_]:
            from difflib import get_close_matches

            near = get_close_matches(command, COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return _refuse(f"there is no command {command!r}.{hint} Commands: {', '.join(COMMANDS)}")
    raise AssertionError("unreachable")


def usage() -> str:
    lines = "\n".join(f"  {name:16} {what}" for name, what in COMMANDS.items())
    return f"""rlhf {__version__}: reinforcement learning from human feedback, from the shell

usage: rlhf <command> [group=option] [key=value] [--multirun] …

{lines}

  rlhf <command> --help     its groups and keys
  rlhf train --cfg job      the composed config
  rlhf train --dry-run …    the checked config, and what it will take: steps, tokens, memory, time; also of a sweep

examples: rlhf train reward=roberta_large data=short_prefix     miniatures on a CPU, the real models on a GPU
          rlhf train scale=small                                a real small language model on a laptop"""


def run(command: str, argv: list[str]) -> int:
    """Check the whole command line, then let Hydra run it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rlhf_cli.internals.hydra_private import get_args_parser

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, not Hydra's printer
    from rlhf_cli.config import typed
    from rlhf_cli.config.hydras_words import in_our_words
    from rlhf_cli.config.own_folder import first
    from rlhf_cli.config.refused import planned_of

    dry, argv = DRY_RUN in argv, [word for word in argv if word != DRY_RUN]
    if dry and command != "train":
        return _refuse(f"{DRY_RUN} is for rlhf train and rlhf sweep")
    machine_readable, argv = False, argv
    if command == "doctor":
        machine_readable, argv = JSON in argv, [word for word in argv if word != JSON]
    try:
        argv, typed.words[:] = parted(command, argv)
    except UserError as error:
        return _refuse(str(error))
    parser = get_args_parser()
    parser.error, parser.allow_abbrev = _usage, False  # type: ignore[assignment]

    try:
        args = parser.parse_args(argv)
        runs = not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)
        first(args.config_dir)
        if args.help:
            return _help(command, argv)
        if not runs:
            return _hydra(command, argv)
        planned = planned_of(command, args)
        _check_places(planned, args)
    except UserError as error:
        return _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(in_our_words(error, command))
    except (ValueError, TypeError, LookupError, OSError, AssertionError, AttributeError, YAMLError) as error:
        # Hydra's own stumbling over what was typed: algo=null, seed=range(5,1), a config folder's broken YAML
        return _refuse(f"this cannot be composed: {' '.join(argv)}\n  {type(error).__name__}: {error}")
    if dry:
        from rlhf_cli.commands.dry_run import show

        return _answered(lambda: show(planned, swept=args.multirun))
    if machine_readable:
        from rlhf_cli.commands.doctor import print_json

        return _answered(lambda: print_json(planned.jobs[0]))
    if processes_started() > 1 and (command != "train" or args.multirun):
        return _refuse("torchrun is for one `rlhf train`: start other commands, and sweeps (hydra/launcher=…), without")
    if args.multirun:
        return _sweep(planned, argv)
    if planned.sweeps and command == "train":
        whole = f"rlhf sweep {shlex.join(argv)}"
        print(f"one run of a sweep over {', '.join(planned.sweeps)}; all of it: {whole}", flush=True)
    return _run(command, [*argv, *_folder(planned, args.overrides)])


def _folder(planned: Any, typed: list[str]) -> list[str]:
    """The overrides that tell Hydra its folder: the resumed run's, or one that this command alone has."""
    from rlhf_cli.config.folders import claimed

    resume, here = getattr(planned.jobs[0], "resume", None), ["hydra.run.dir=.", "hydra.output_subdir=null"]
    if resume not in (None, "auto"):
        return [f"hydra.run.dir={quoted(resume)}", "hydra.output_subdir=null"]
    if not _leads():
        return here  # the first process names the folder
    if any(override.startswith("hydra.run.dir=") for override in typed):
        return []
    place = _place(planned)
    return here if place == "." else [f"hydra.run.dir={quoted(claimed(place))}"]


def _place(planned: Any) -> str:
    """Where a command that is no sweep writes; the current folder where it writes nothing, or to its own `out=`."""
    elsewhere = planned.command in ("report", "frontier") and planned.jobs[0].out
    return "." if elsewhere else str(planned.run_dir)


def _check_places(planned: Any, args: Any) -> None:
    """Raises UserError where the command could not write what it makes."""
    from rlhf_cli.config.folders import check_writable

    if any(re.fullmatch(r"hydra\.job\.chdir=\W?[Tt]rue\W?", o) for o in args.overrides):
        raise UserError("hydra.job.chdir=true: rlhf stays in the folder where it was started; drop it")
    place, key = (planned.sweep_dir, "hydra.sweep.dir") if args.multirun else (_place(planned), "hydra.run.dir")
    if place != ".":  # there a command writes nothing
        check_writable(place, key)


def _usage(fault: str) -> NoReturn:
    raise UserError(f"{fault}. Keys are typed without dashes, with an equals sign: steps=10, algo.beta=0.1")


def sweep(argv: list[str]) -> int:
    """`rlhf sweep …`: a multirun of train, what was left of one, or its definition for W&B."""
    if argv[:1] == ["wandb"]:
        from rlhf_cli.sweeps.wandb_definition import write

        return _answered(lambda: write(argv[1:]))
    places = [word.partition("=")[2] for word in argv if word.startswith("resume=")]
    if places and DRY_RUN in argv:
        return _refuse(f"{DRY_RUN} is for a sweep that has not begun: drop resume=")
    if not places or places == ["auto"]:
        asks = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
        if asks.intersection(argv):
            print(SWEEP_HELP if {"--help", "-h"}.intersection(argv) else "", end="")
            return run("train", argv)
        return run("train", ["--multirun", *argv])
    if not places[-1].strip("'\" "):
        return _refuse("resume= names no folder: give the sweep's, or leave resume= out")
    from rlhf_cli.sweeps.sweep import resume

    typed = [word for word in argv if not word.startswith("resume=")]
    return _answered(lambda: resume(places[-1].strip("'\""), typed))


def _sweep(planned: Any, argv: list[str]) -> int:
    """A list of jobs is ours to run; a sweeper that proposes jobs as it goes has Hydra run them."""
    if "BasicSweeper" in planned.sweeper:
        from rlhf_cli.sweeps.sweep import start

        return _answered(lambda: start(planned, [a for a in argv if a not in ("--multirun", "-m")]))
    from rlhf_cli.sweeps.sweep import set_id_aside

    set_id_aside()
    argv = ["--multirun", *(a for a in argv if a not in ("--multirun", "-m"))]
    code = _run(planned.command, [*argv, f"hydra.sweep.dir={quoted(planned.sweep_dir)}"])
    from rlhf_cli.sweeps.table import show

    return max(code, show(Path(planned.sweep_dir))) if Path(planned.sweep_dir).is_dir() else max(code, 1)


def _answered(action: Callable[[], int]) -> int:
    """The action's exit code; an error of the user's, or of Hydra in the name of one, is one message."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rlhf_cli.config.hydras_words import in_our_words

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        return action()
    except UserError as error:
        return _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(in_our_words(error))


def _run(command: str, argv: list[str]) -> int:
    from rlhf_cli.runs.status import Interrupted

    code = 0
    try:
        code = _hydra(command, argv)
    except UserError as error:
        code = _refuse(str(error))
    except Interrupted as error:
        code = INTERRUPTED[error.signal]
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        from rlhf_cli.runs.status import reported

        if isinstance(error, RunFailed | OSError) and not reported(error):
            from rlhf_cli.tracking.text import harmless

            print(f"rlhf: {harmless(str(error))}", file=sys.stderr)
        elif not reported(error):
            import traceback

            traceback.print_exc()
        code = 1
    return code


def _help(command: str, argv: list[str]) -> int:
    from rlhf_cli.config.explain import explained

    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):  # Hydra exits behind its help
        _hydra(command, argv)
    print(explained(text.getvalue(), command), end="")
    return 0


def _hydra(command: str, argv: list[str]) -> int:
    import hydra

    from rlhf_cli.config.compose import CONF

    sys.argv = [f"rlhf {command}", *argv]
    name = command.replace("-", "_")
    task = import_module(f"rlhf_cli.commands.{name}").run
    if "--multirun" not in argv:
        task, failure = _quiet(task)
    else:
        failure = []
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task)()
    if failure:
        raise failure[0]
    return 0


def _quiet(task: Callable[..., Any]) -> tuple[Callable[..., Any], list[BaseException]]:
    """The task, and where its exception lands: Hydra would print a line of overrides above our message."""
    failure: list[BaseException] = []

    @wraps(task)
    def quiet(cfg: Any) -> Any:
        try:
            return task(cfg)
        except BaseException as error:
            failure.append(error)
            return None
        finally:
            _remove_if_empty()

    return quiet, failure


def _remove_if_empty() -> None:
    """The folder that Hydra made for a command that wrote nothing into it."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder != Path.cwd():  # that of commands that write nowhere else
        with suppress(OSError):
            folder.rmdir()


def _refuse(message: str) -> int:
    if _leads():
        from rlhf_cli.tracking.text import harmless

        print(f"rlhf: {harmless(message)}", file=sys.stderr)
    return 2


def _leads() -> bool:
    """Whether this is the process that speaks for all that torchrun started."""
    return processes_started() == 1 or os.environ.get("RANK", "0") == "0"


def _commands_to_complete(argv: list[str]) -> list[str] | None:
    """The commands that begin as the line that is being completed; None where there is no such line, or it has one."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    asked = argv[:1] == ["-sc"] and any(word.startswith("query=") for word in argv)
    return [command for command in COMMANDS if command.startswith(words[1])] if asked and len(words) == 2 else None


def _completing(argv: list[str]) -> list[str]:
    """Hydra's completion script knows no sub-commands: find ours in the line that is being completed."""
    if not argv or argv[0] not in ("-sc", "--shell-completion", "--shell_completion"):
        return argv
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) < 3 or words[1] not in COMMANDS:
        return ["train", *argv]
    os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return [words[1], *argv]
