"""rlhf completion: tab completion for a shell, installed with one command."""

import io
import os
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.shipped import nearest

HELP = """rlhf completion: tab completion of commands, groups, options and keys.

  rlhf completion install [bash|zsh|fish]     for this shell, or the one that is named; again: brings it up to date
  rlhf completion show bash                   the script, to put where you like

== Examples ==
rlhf completion install
rlhf completion show fish > rlhf.fish"""

Rlhf = Callable[[list[str]], int]
"""The command line itself: Hydra writes the script when it is asked as one asks it."""
SHELLS = ("bash", "zsh", "fish")
MARK = "# tab completion of rlhf, by: rlhf completion install"


def main(argv: list[str], rlhf: Rlhf) -> int:
    """Do what the words say. Raises UserError."""
    match argv:
        case [] | ["--help" | "-h" | "help", *_] | [_, "--help" | "-h"]:
            print(HELP)
        case ["install"]:
            install(known(Path(os.environ.get("SHELL", "")).name or "none"), rlhf)
        case ["install", shell]:
            install(known(shell), rlhf)
        case ["show", shell]:
            print(script(known(shell), rlhf))
        case _:
            raise UserError(f"rlhf completion {' '.join(argv)}: type rlhf completion install, or … install bash")
    return 0


def known(shell: str) -> str:
    if shell not in SHELLS:
        raise UserError(
            f"no completion for the shell {shell!r}.{nearest(shell, list(SHELLS))} Allowed: bash, zsh, fish"
        )
    return shell


def install(shell: str, rlhf: Rlhf) -> None:
    """Write the script, and for bash and zsh the line that reads it; say which files. Raises UserError."""
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:
        raise UserError(f"this user has no home directory: set HOME, or rlhf completion show {shell}") from None
    if shell == "fish":
        place, startup = home / "fish" / "completions" / "rlhf.fish", None
    else:
        place = home / "rlhf" / f"completion.{shell}"
        startup = (
            Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc" if shell == "zsh" else Path.home() / ".bashrc"
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(script(shell, rlhf) + "\n", encoding="utf-8")
        print(f"wrote {place}")
        if startup is not None:
            print(f"{startup}: {read_at_start(startup, place)}")
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); rlhf completion show {shell}"
        ) from None
    print(f"it works in every new {shell}")


def read_at_start(startup: Path, place: Path) -> str:
    """Have the shell's startup file read the script, once; says what was done."""
    text = startup.read_text(encoding="utf-8") if startup.is_file() else ""
    if MARK in text:
        return "reads it already"
    quoted = "'" + str(place).replace("'", "'\\''") + "'"
    between = "" if not text or text.endswith("\n") else "\n"
    with startup.open("a", encoding="utf-8") as file:
        file.write(f"{between}{MARK}\n[ -f {quoted} ] && . {quoted}\n")
    return "two lines were added, which read it"


def script(shell: str, rlhf: Rlhf) -> str:
    """Hydra's own for the command `rlhf`. zsh reads that of bash."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        rlhf(["train", "--shell-completion", f"install={'fish' if shell == 'fish' else 'bash'}"])
    lines = text.getvalue().strip().replace("rlhf train", "rlhf").splitlines()
    ours = [line for line in lines if not line.startswith("complete -c python")]
    first = ["autoload -Uz bashcompinit && bashcompinit"] if shell == "zsh" else []
    return "\n".join([*first, *ours])
