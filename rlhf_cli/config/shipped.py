"""The configs that ship with rlhf: their names, what each is in a line, and copies of them in a folder of one's own."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rlhf_cli.config.compose import CONF
from rlhf_cli.config.errors import UserError


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file of conf/: an option of a group, as algo/grpo, or what a command starts from, as train."""

    name: str
    about: str
    """One line, from the file's own comments; empty where it says nothing."""

    @property
    def group(self) -> str:
        """The group of an option, as hydra/launcher; empty for a command's own file."""
        return self.name.rpartition("/")[0]

    @property
    def option(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def text(self) -> str:
        return (CONF / f"{self.name}.yaml").read_text(encoding="utf-8")


def shipped() -> list[Shipped]:
    """Every file of conf/, commands' own first."""
    files = {file.relative_to(CONF).with_suffix("").as_posix(): file for file in CONF.rglob("*.yaml")}
    found = [Shipped(name, about(file.read_text(encoding="utf-8"))) for name, file in files.items()]
    return sorted(found, key=lambda config: (config.group, config.option))


def about(text: str) -> str:
    """The first sentence of a file's opening comment; without one, the comment behind its first key."""
    opening: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or (opening and line.startswith("#  ")):
            break  # behind two spaces stand commands to type
        if not line.startswith("# @package"):
            opening.append(line.removeprefix("#").strip())
    if opening:
        return re.split(r"(?<=\.)(?<!Dr\.) (?=[A-Z])", " ".join(opening))[0]
    behind = re.search(r"^\w+:.*?\s# (.*)$", text, re.MULTILINE)
    return behind[1].strip() if behind else ""


def named(wanted: str) -> Shipped:
    """The config of this name: algo/grpo, algo=grpo, or grpo where only one group has it. Raises UserError."""
    every = shipped()
    name = wanted.removesuffix(".yaml").replace("=", "/").strip("/")
    by_name = {config.name: config for config in every}
    if name in by_name:
        return by_name[name]
    alike = [config for config in every if config.option == name]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise UserError(f"{wanted} is in several groups: {' or '.join(config.name for config in alike)}")
    group = [config.option for config in every if config.group == name]
    if group:
        raise UserError(f"{wanted} is a group: {', '.join(f'{name}/{option}' for option in group)}")
    near = nearest(name, [*by_name, *(config.option for config in every)])
    raise UserError(f"there is no config {wanted!r}.{near} All of them: rlhf configs list")


def of_group(wanted: str) -> list[Shipped]:
    """The options of a group. Raises UserError where there is no such group."""
    every = shipped()
    found = [config for config in every if config.group == wanted.rstrip("=/")]
    if not found:
        groups = sorted({config.group for config in every} - {""})
        raise UserError(f"there is no group {wanted!r}.{nearest(wanted, groups)} Allowed: {', '.join(groups)}")
    return found


def nearest(wrong: str, known: list[str]) -> str:
    near = get_close_matches(wrong, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def copy_into(folder: Path, configs: list[Shipped]) -> list[Path]:
    """The files written below the folder. Raises UserError, with nothing written, where one of them is there."""
    places = {config: folder / f"{config.name}.yaml" for config in configs}
    there = [str(place) for place in places.values() if place.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(f"{there[0]}{more}: already there, and nothing is overwritten. Choose another folder")
    try:
        for config, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(config.text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}). Choose another folder") from None
    return list(places.values())
