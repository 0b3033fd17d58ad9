"""`--help` with the comments of conf/ beside the keys: what Hydra composes has lost them."""

import re
import shutil
import textwrap

from rlhf_cli.config.compose import CONF

LINE = re.compile(r"(?P<indent> *)(?P<key>[\w']+):(?P<value>.*?)(?:\s+# (?P<comment>.*))?$")
BESIDE = 36
"""The column at which comments stand."""


def explained(text: str, command: str) -> str:
    """Hydra's help for a command, each key with its comment."""
    head, mark, rest = text.partition("== Keys")
    if not mark:
        return text
    title, _, body = rest.partition("\n")
    keys, after, tail = body.partition("\n\n\n==")
    files = [CONF / f"{command.replace('-', '_')}.yaml", CONF / "train.yaml"]
    known: dict[str, str] = {}
    for file in files:
        known = comments(file.read_text(encoding="utf-8")) | known
    lines = [(path, line) for path, _, line in _keys(keys)]
    # which option of each group it is: its name, or its value where it is only that (scale)
    chosen = {path.removesuffix(".name"): line.split()[-1] for path, line in lines if line.strip()}
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        said = {file.stem: _in(group.name, file.read_text(encoding="utf-8")) for file in sorted(group.glob("*.yaml"))}
        # the chosen option's own words first, then those of the option that says most
        order = sorted(said, key=lambda option: (option != chosen.get(group.name), -len(said[option])))
        for option in order:
            known = said[option] | known
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    shown = "\n".join(_beside(line, known.get(path, ""), width) for path, line in lines)
    return f"{head}{mark}{title}\n{shown}{after}{tail}"


def _in(group: str, text: str) -> dict[str, str]:
    """The comments of one option of a group, by the paths that it sets."""
    if "@package _global_" in text:
        return comments(text)
    return {f"{group}.{key}": comment for key, comment in comments(text).items()}


def comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML file, by the key's path with dots."""
    return {path: comment for path, comment, _ in _keys(text) if path and comment}


def _keys(text: str) -> list[tuple[str, str, str]]:
    """(path, comment, line) of every line; no path where no key stands."""
    found: list[tuple[str, str, str]] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.match(line)
        if not match:
            found.append(("", "", line))
            continue
        depth = len(match["indent"])
        above = [(d, key) for d, key in above if d < depth] + [(depth, match["key"].strip("'"))]
        found.append((".".join(key for _, key in above), match["comment"] or "", line))
    return found


def _beside(line: str, comment: str, width: int) -> str:
    if not comment:
        return line
    first = f"{line:{BESIDE - 2}}  "
    return textwrap.fill(comment, width, initial_indent=first, subsequent_indent=" " * BESIDE, break_long_words=False)
