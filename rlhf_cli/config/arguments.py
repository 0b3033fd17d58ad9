"""A command line before Hydra sees it: flags, keys, and words that are neither."""

import os
import re
from pathlib import Path

from rlhf_cli.config.errors import UserError

TAKES_VALUE = {
    "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c", "--info",
    "-i",
}  # fmt: skip
TEXTS = ("sample", "probe")
"""Commands whose words are text, for a model to read."""
FOLDERS = {"eval": 1, "compare": 2, "report": None, "frontier": None, "runs": None}
"""Commands whose words are folders, and how many they take."""


def parted(command: str, argv: list[str]) -> tuple[list[str], list[str]]:
    """(flags and then keys, words). Hydra's parser wants flags and keys apart, people do not sort them."""
    flags: list[str] = []
    keys: list[str] = []
    words: list[str] = []
    wanted = iter(argv)
    for word in wanted:
        if word == "--" and (command in TEXTS or command in FOLDERS):
            words += wanted  # whatever they look like
        elif word in TAKES_VALUE:
            flags += [word, *([value] if (value := next(wanted, None)) is not None else [])]
        elif _is_key(command, word):
            keys.append(_taken_whole(_from_home(_rules_quoted(word))))
        elif re.match(r"--?[A-Za-z]", word) and not re.search(r"\s", word.partition("=")[0]):
            flags.append(word)
        elif command in TEXTS or command in FOLDERS:
            words.append(word)
        else:
            keys.append(word)
    if command in TEXTS:
        words = [as_utf8(word) for word in words]
    most = FOLDERS.get(command)
    if most is not None and len(words) > most:
        what = "two runs, or one and the untrained actor" if command == "compare" else "one run or checkpoint"
        raise UserError(f"rlhf {command} takes {what}; these are {len(words)}")
    return [*flags, *(key for typed in keys for key in one_by_one(typed))], words


def as_utf8(word: str) -> str:
    """The word; where the locale could not read its bytes, read as UTF-8. Raises UserError where they are not."""
    if not any("\ud800" <= sign <= "\udfff" for sign in word):
        return word
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        raise UserError(f"{word.encode('ascii', 'backslashreplace').decode()}: this is not UTF-8") from None


def one_by_one(typed: str) -> list[str]:
    """`gold=[a,b]` as Hydra wants it: the first option as the group, each other one as gold.others.<name>. (A list of
    options Hydra would lay over each other.) Raises UserError for a list that names nobody, or somebody twice."""
    found = re.fullmatch(r"gold=\s*\[([^\[\]]*)\]\s*", typed)
    if not found:
        if re.match(r"gold=.*\[", typed):
            raise UserError(f"{typed}: one list of judges is wanted, the same for all jobs: gold=[vader,roberta_base]")
        return [typed]
    names = [name.strip(" '\"") for name in found[1].split(",")]
    if not all(names):
        raise UserError(f"{typed}: name the judges that are not trained on, gold=[vader,roberta_base], or gold=none")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{typed}: the judge {twice} is there twice; name each once")
    if "none" in names and len(names) > 1:
        raise UserError(f"{typed}: none is no judge beside others; leave it away, or type gold=none")
    return [f"gold={names[0]}", *(f"+gold@gold.others.{name.rpartition('/')[2]}={name}" for name in names[1:])]


def _rules_quoted(word: str) -> str:
    """stop.when=val/kl > 20, as one types it; Hydra's grammar takes < and > only in quotes."""
    key, _, value = word.partition("=")
    if key.lstrip("+") != "stop.when" or not re.search(r"[<>]", value) or re.search(r"['\"]", value):
        return word
    several = value.strip().startswith("[") and value.strip().endswith("]")
    rules = value.strip()[1:-1].split(",") if several else [value]
    return f"{key}=[{','.join(quoted(rule.strip()) for rule in rules)}]"


def _from_home(word: str) -> str:
    """key=~/films, which the shell leaves as it is and Hydra's grammar takes only in quotes. Folders that Hydra makes
    are named whole: it would make one that is called ~."""
    key, _, value = word.partition("=")
    bare = value.strip("'\"")
    if not re.match(r"~(/|$)", bare):
        return word
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        has_home(bare, key)
        return f"{key}={quoted(os.path.expanduser(bare))}"
    several = bare.split(",") if bare == value else [bare]
    return f"{key}={','.join(map(quoted, several))}"


def has_home(text: str, key: str) -> None:
    """Raise UserError where `~` stands for nothing: a user without an entry and without HOME."""
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={text}: this user has no home directory; give {key}=<folder>, or set HOME") from None


def _taken_whole(word: str) -> str:
    """A value that Hydra's grammar has no reading for (name=été, notes=it's, data.source=a&b.csv) in quotes; not one
    with the signs of a list, a sweep or an interpolation, which may be a slip."""
    from hydra.errors import HydraException

    from rlhf_cli.internals.hydra_private import OverridesParser

    key, equals, value = word.partition("=")
    if not equals or re.search(r"[\[\]{}(),]|\$\{|^['\"]", value):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return f"{key}={quoted(value)}"
    return word


def _is_key(command: str, word: str) -> bool:
    """`key=value`, `+key=value`, `~key`; "A = b?" and "+1 would watch" are text."""
    before, equals, _ = word.partition("=")
    if equals:
        return re.fullmatch(r"(\+\+?|~)?[\w.@/$:][\w.@/$:\-]*", before) is not None
    return command not in TEXTS and re.match(r"\+|~[^/]", word) is not None


def quoted(text: str) -> str:
    """A string of Hydra's override grammar, which takes a backslash for itself before a quote and at the end."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return "'" + re.sub(r"(\\*)\$\{", r"\1\1\\${", escaped) + "'"
