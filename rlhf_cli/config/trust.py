"""What a saved config may do: a run that somebody else made can name code."""

from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.flat import covered, flat

CODE = {"val.metrics": "val.metrics=[]", "algo.loss": "algo.loss=null"}
"""Keys that name code beside the judges', and what to type to do without."""


def refuse_code(folder: Path, saved: dict[str, Any], typed: set[str], *, trusted: bool) -> None:
    """Raise UserError where a saved config, which may be somebody else's, would run code or hand out a key that was not
    `typed`, unless the user trusts it. Whether the saved one trusted another is taken out of it."""
    saved.pop("trust_config", None)
    named = {
        key: value
        for key, value in flat(saved).items()
        if (key.rpartition(".")[2] in ("fn", "key_env") or key in CODE) and value and not covered(key, typed)
    }
    if named and not trusted:
        listed = ", ".join(f"{key}={value}" for key, value in named.items())
        judges = {key: f"{key.partition('.')[0]}=vader" for key in named}
        leave = dict.fromkeys(CODE.get(key, judges[key]) for key in named)
        raise UserError(
            f"{folder}/config.yaml names code or a key: {listed}. If you trust it: trust_config=true, or without them: "
            f"{' '.join(leave)}"
        )
