"""What was typed beside keys, and from where: words that reach the config as they are, paths that become absolute."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config.arguments import has_home
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import names_a_folder

words: list[str] = []
"""The positional arguments of this process's command. They do not go through Hydra's grammar, which has its own
ideas of backslashes, `${`, `+` and commas."""

NAMED = ("imdb", "generated", "auto", "film", "english", "none")
FUNCTIONS = (("reward", "fn"), ("gold", "fn"), ("algo", "loss"))
FILES = (
    ("data", "source"),
    ("algo", "ptx_source"),
    ("reward_train", "data"),
    ("probe", "file"),
    ("probe", "run"),
    ("audit", "run"),
    ("hacking", "topic"),
    ("hacking", "abuse"),
)
SAID = ("prefixes", "probe.texts", "name", "tags", "notes", "title", "prompt.user", "prompt.system")
"""Keys of words for people and models, no paths."""
FOLDERS = ("cache_dir", "resume", "checkpoint", "against", "from")


def with_words(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the words where the command takes them."""
    match command:
        case _ if not words and command != "frontier":
            return values
        case "sample":
            return values | {"prefixes": [*values["prefixes"], *words]}
        case "probe":
            return values | {"probe": values["probe"] | {"texts": [*values["probe"]["texts"], *words]}}
        case "report":
            return values | {"runs": [*values["runs"], *words]}
        case "runs":
            return values | {"folders": [*values["folders"], *words]}
        case "frontier":  # the first run's config is the one to start from
            runs = [path(folder) for folder in [*values["runs"], *words]]
            return values | {"runs": runs, "checkpoint": values["checkpoint"] or next(iter(runs), None)}
        case "eval" | "compare":
            return values | dict(zip(("checkpoint", "against"), words, strict=False))
    return values


ONE_OPTION = ("actor", "critic", "reward", "gold", "data", "prompt", "algo")
"""Groups of which Hydra would lay several options over each other, so that the last one were meant."""


def one_option_each(config: Any) -> None:
    """Raises UserError where a list of options was chosen; Hydra notes a choice only where it is one."""
    for group in ONE_OPTION:
        if group in config and group not in config.hydra.runtime.choices:
            raise UserError(f"{group}: {one_option_of(group)}")


def one_option_of(group: str) -> str:
    """What to do instead of choosing several options of a group."""
    several = {
        "gold": "; on the command line gold=[vader,roberta_base], in a file's defaults each judge after the first "
        "as /gold@gold.others.roberta_base: roberta_base",
        "reward": "; several rewards are the sources of one: reward=mix",
    }
    return (
        f"one option of the group is wanted, not a list{several.get(group, f'; a run of each: rlhf sweep {group}=…,…')}"
    )


def absolute(values: dict[str, Any]) -> dict[str, Any]:
    """The values with every relative path made absolute, so that a run is resumed and judged from any folder."""
    values = {key: _absolute_parts(part) if isinstance(part, dict) else part for key, part in values.items()}
    if isinstance(cache := values.get("cache_dir"), str) and not cache.strip():
        raise UserError("RLHF_CACHE is empty, or cache_dir=: unset it, or name a folder")
    for key, text in _texts(values):
        if re.match(r"~[\w.-]*(/|$)", text) and key not in SAID:
            has_home(text, key)
    for key in FOLDERS:
        if isinstance(values.get(key), str) and values[key] not in ("none", "auto", "last"):
            values[key] = path(values[key])
    for group, key in FILES:
        part = values.get(group)
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key] not in NAMED:
            values[group] = part | {key: path(part[key])}
    val = values.get("val")
    if isinstance(val, dict) and isinstance(named := val.get("metrics"), list):
        values["val"] = val | {"metrics": [function(dotted) if isinstance(dotted, str) else dotted for dotted in named]}
    for group, key in FUNCTIONS:
        part = values.get(group)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            values[group] = part | {key: function(part[key])}
    return values


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, f"{key}.{name}" if key else str(name))


def _absolute_parts(part: dict[str, Any]) -> dict[str, Any]:
    """Of a group, and of its sources or other judges: the model folders."""
    named = part.get("path")
    if isinstance(named, str) and named and (names_a_folder(named) or Path(named).exists()):
        part = part | {"path": path(named)}
    for key in ("sources", "others"):
        if not isinstance(inner := part.get(key), dict):
            continue
        found = {name: _absolute_parts(s) if isinstance(s, dict) else s for name, s in inner.items()}
        for name, source in found.items():
            if isinstance(source, dict) and isinstance(source.get("fn"), str):
                found[name] = source | {"fn": function(source["fn"])}
        part = part | {key: found}
    return part


def path(text: str) -> str:
    """Absolute, with `~` left for the home of whoever reads it; empty stays empty."""
    return text if not text.strip() or text.startswith("~") else os.path.normpath(Path(text).absolute())


def function(dotted: str) -> str:
    """`module:function`, with the file where the module is one of the current folder: `/there/module.py:function`."""
    module, colon, name = dotted.rpartition(":")
    file = Path(module if module.endswith(".py") else module.replace(".", os.sep) + ".py")
    return f"{file.absolute()}:{name}" if colon and file.is_file() else dotted
