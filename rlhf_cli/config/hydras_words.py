"""What Hydra says of a command line, in our words: what is wrong, what is allowed, what to type."""

import re
from difflib import get_close_matches

from rlhf_cli.config.arguments import TEXTS, quoted
from rlhf_cli.config.faults import unknown_key
from rlhf_cli.config.schemas import schema_of


def in_our_words(error: Exception, command: str = "") -> str:
    """Hydra's message without its invitation to `+key=…`, which would only be refused later."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        text_typed = f"; a text that looks like a key: rlhf {command} … -- 'the text'" if command in TEXTS else ""
        return unknown_key(match[1], schema_of(command)) + text_typed
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"+{match[1]}: this key is there already; type it without +: {match[1]}=…"
    if match := re.search(r"Could not delete from config\. '([^']+)' does not exist", text):
        return f"~{match[1]}: there is no such key to leave out (all keys: rlhf {command or 'train'} --cfg job)"
    match = re.search(
        r"Could not find '([\w/]+)/([^']+)'\s+Available options in '[\w/]+':\s+((?:\S+\s*\n?)+?)\s*Config search", text
    )
    if match:
        return _no_option(match[1], match[2], match[3].split())
    if type(error).__name__ == "OverrideParseException":
        typed = str(getattr(error, "override", "") or text.partition("\n")[0])
        key, equals, value = typed.partition("=")
        if not equals:
            return f"{typed}: a key and a value are wanted, as in steps=10"
        mended = f"{key}={quoted(value)}"
        return f'{typed}: this value must stand in quotes of its own, within those of the shell: "{mended}"'
    return text.strip() or str(error.__cause__ or type(error).__name__)


def _no_option(group: str, wrong: str, options: list[str]) -> str:
    near = get_close_matches(wrong, options, n=1)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    if group == "hydra/sweeper" and wrong == "optuna":
        hint = " It is an extra: pip install 'rlhf[optuna]'."
    return f"{group}={wrong}: there is no such option.{hint} Allowed: {', '.join(options)}"
