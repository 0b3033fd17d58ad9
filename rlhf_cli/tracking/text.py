"""Model text is untrusted: what may reach a terminal."""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping

# Control (Cc), invisible formatting such as bidi overrides (Cf), lone surrogates (Cs), line separators (Zl, Zp).
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """One line of `text` that is safe to show: every run of white space and control characters is one space.

    Rich markup is left as it stands: show the result through `rich.text.Text`, which never parses it.
    """
    return " ".join("".join(" " if unicodedata.category(c) in _UNSAFE else c for c in text).split())


def markdown_text(text: str) -> str:
    """`printable`, with all that Markdown or HTML would read as markup escaped; the ends keep their space."""
    lead, tail = (" " if text[at : at + 1 or None].isspace() else "" for at in (0, -1))
    escaped = "".join("\\" + c if c in "\\`*_{}[]()<>#+-!|~&°" else c for c in printable(text))
    return lead + escaped + (tail if escaped else "")


def harmless(text: str) -> str:
    """`text` with its lines, but without anything that moves a cursor or hides a character."""
    return "".join(" " if unicodedata.category(c) in _UNSAFE and c != "\n" else c for c in text)


def as_typed(overrides: Iterable[str]) -> str:
    """Overrides as a person types them: Hydra puts a backslash before what its grammar has a meaning for."""
    return " ".join(re.sub(r"\\(.)", r"\1", override) for override in overrides)


def to_copy(commands: Mapping[str, str]) -> list[str]:
    """Commands to type next, each with what it is for."""
    width = max(map(len, commands))
    return ["next:", *(f"  {command:{width}}  # {why}" for command, why in commands.items())]


def shell(path: object) -> str:
    """A path or word as it is typed in a shell."""
    return shlex.quote(str(path))
