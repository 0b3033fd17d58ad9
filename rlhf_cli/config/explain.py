"""`--help` with the comments of conf/ beside the keys: what Hydra composes has lost them."""

import re
import shutil
import textwrap

from rlhf_cli.config.compose import CONF

LINE = re.compile(r"(?P<indent> *)(?P<key>[\w']+):(?P<value>.*?)(?:\s+# (?P<comment>.*))?$")
RECIPES = ("experiment", "debug")
"""Groups whose comments say why a value stands there, not what the key is."""
BESIDE = 36
"""The column at which comments stand."""


def explained(text: str, command: str) -> str:
    """Hydra's help for a command in the order in which it is read: examples, the command's own keys, groups, and the
    keys that it shares with `rlhf train`; each key with its comment."""
    head, mark, rest = text.partition("== Keys")
    if not mark:
        return text
    header, _, groups = head.partition("== Groups")
    title, _, body = rest.partition("\n")
    keys, _, tail = body.partition("\n\n\n== Examples ==\n")
    examples, _, more = tail.partition("\n\n")
    lines = [(path, line) for path, _, line in _keys(keys)]
    known, width = _known(command, lines), max(80, shutil.get_terminal_size((120, 24)).columns)
    own = _own(command)
    parts: dict[bool, list[str]] = {True: [], False: []}
    for path, line in lines:
        parts[path.partition(".")[0] in own].append(_beside(line, known.get(path, ""), width))
    scale = next((line.split()[-1] for path, line in lines if path == "scale"), None)
    named = f"{'Keys that it shares with rlhf train' if own else 'Keys'}, as they stand at scale={scale}"
    others = f"Another choice has others: rlhf {command} scale=small --help, rlhf {command} reward=minilm --help\n"
    pieces = [header.rstrip(), f"== Examples ==\n{examples.rstrip()}"]
    pieces += [f"== Keys of rlhf {command} ==\n" + "\n".join(parts[True])] if parts[True] else []
    pieces += [f"== Groups{groups.rstrip()}"] if groups.strip() else []
    if parts[False]:
        pieces += [
            (f"== {named}{title}\n{others}" if scale else "== Other keys ==\n") + "\n".join(parts[False]).rstrip()
        ]
    return "\n\n".join([*pieces, more.strip()]).rstrip() + "\n"


def _files(name: str) -> list[str]:
    """The text of a command's file and of those that it builds on, its own first."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    bases = [base for base in re.findall(r"^  - (\w+)$", text, re.MULTILINE) if base != "_self_"]
    return [text, *(more for base in bases for more in _files(base))]


def _own(command: str) -> set[str]:
    """Top-level keys that its files set, `train.yaml`, the last of them, left out."""
    keys = {path for text in _files(command.replace("-", "_"))[:-1] for path, _, _ in _keys(text)}
    return {path for path in keys if path and "." not in path} - {"defaults", "hydra", "objective"}


def _known(command: str, lines: list[tuple[str, str]]) -> dict[str, str]:
    """The comments of all keys, by their paths."""
    known: dict[str, str] = {}
    for text in _files(command.replace("-", "_")):
        known = comments(text) | known
    # which option of each group it is: its name, or its value where it is only that (scale)
    chosen = {path.removesuffix(".name"): line.split()[-1] for path, line in lines if line.strip()}
    for group in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in RECIPES):
        said = {file.stem: _in(group.name, file.read_text(encoding="utf-8")) for file in sorted(group.glob("*.yaml"))}
        # the chosen option's own words first, then those of the option that says most
        order = sorted(said, key=lambda option: (option != chosen.get(group.name), -len(said[option])))
        for option in order:
            known = said[option] | known
    return known


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
