"""rlhf configs: the configs that ship with rlhf, to read and to take away."""

from itertools import groupby
from pathlib import Path

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.shipped import copy_into, named, nearest, of_group, shipped
from rlhf_cli.tracking.text import shell

HELP = """rlhf configs: the configs that ship with rlhf, to read and to take away.

  rlhf configs list [GROUP]            every group and option, with a line on each
  rlhf configs show NAME …             a file with its comments: train, algo/grpo, grpo
  rlhf configs copy FOLDER [NAME …]    into a folder of yours: all of them, or those named; overwrites nothing

== Examples ==
rlhf configs list algo
rlhf configs show reward/vader
rlhf configs copy my_configs algo/grpo
rlhf train --config-dir my_configs algo=grpo

What stands in --config-dir comes before what ships. Copy only what you change: the rest then stays rlhf's own, also
when a newer release has more keys."""

ACTIONS = ("list", "show", "copy")


def main(argv: list[str]) -> int:
    """Do what the words say. Raises UserError."""
    match argv:
        case [] | ["--help" | "-h" | "help", *_]:
            print(HELP)
        case [_, "--help" | "-h", *_]:
            print(HELP)
        case ["list"]:
            show_list(None)
        case ["list", group]:
            show_list(group)
        case ["show", _, *_]:
            print("\n".join(f"# conf/{c.name}.yaml\n{c.text.rstrip()}\n" for c in map(named, argv[1:])), end="")
        case ["copy", folder, *names]:
            copy(folder, names)
        case ["show" | "copy"]:
            wanted = "NAME, as algo/grpo" if argv[0] == "show" else "FOLDER"
            raise UserError(f"rlhf configs {argv[0]} {wanted}: it is missing")
        case ["list", *_]:
            raise UserError(f"rlhf configs list takes one group; these are {len(argv) - 1}")
        case [word, *_]:
            raise UserError(f"rlhf configs {word}: list, show or copy is wanted.{nearest(word, list(ACTIONS))}")
    return 0


def show_list(group: str | None) -> None:
    """Groups with their options; at the terminal's width lines fold under their own column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    configs = of_group(group) if group else shipped()
    width = max(len(config.option) for config in configs) + 2
    table.add_column(width=width, no_wrap=True)
    for name, options in groupby(configs, key=lambda config: config.group):
        title = f"{name}=" if name else "commands"
        table.add_row(Text(title, "bold"), Text("" if name else "what each starts from", "dim"))
        for config in options:
            table.add_row(f"  {config.option}", Text(config.about))
    Console(soft_wrap=False, highlight=False).print(table)


def copy(folder: str, names: list[str]) -> None:
    """Say what was written, and how it is used."""
    if folder.startswith("-") or "=" in folder or not folder.strip():
        raise UserError(f"rlhf configs copy {folder}: a folder is wanted, as in rlhf configs copy my_configs")
    written = copy_into(Path(folder).expanduser(), [named(name) for name in names] or shipped())
    what = str(written[0]) if len(written) == 1 else f"{len(written)} configs below {folder}"
    print(f"wrote {what}\nuse: rlhf train --config-dir {shell(folder)}")
