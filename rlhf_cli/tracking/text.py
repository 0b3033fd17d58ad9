"""Model text is untrusted: what may reach a terminal."""

import unicodedata

# Control (Cc), invisible formatting such as bidi overrides (Cf), lone surrogates (Cs), line separators (Zl, Zp).
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """One line of `text` that is safe to show: every run of white space and control characters is one space.

    Rich markup is left as it stands: show the result through `rich.text.Text`, which never parses it.
    """
    return " ".join("".join(" " if unicodedata.category(c) in _UNSAFE else c for c in text).split())
