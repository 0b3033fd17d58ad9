"""Metrics of the user's own: functions of the prompts and responses of a validation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_cli.config.dotted import function_named
from rlhf_cli.config.errors import RunFailed

Metrics = dict[str, Callable[..., Any]]
"""The functions by what they were named with, module:function."""


def user_metrics(named: Sequence[str]) -> Metrics:
    """Those of val.metrics. Raises UserError where one is not there, or does not take two arguments."""
    return {dotted: function_named(dotted, "val.metrics", arguments=2) for dotted in named}


def measured(metrics: Metrics, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """`val/<function>`, or `val/<function>/<key>` of a function that gives a dict; of lists, the mean.

    Raises RunFailed where one raises, or gives no finite number, or a list that is not one number a response: a curve
    that were silently missing would be noticed when the run is over.
    """
    found: dict[str, float] = {}
    for dotted, function in metrics.items():
        name = f"val/{dotted.rpartition(':')[2]}"
        try:
            given = function([*prompts], [*responses])
        except SystemExit as error:
            raise RunFailed(f"val.metrics: {dotted} called sys.exit({error.code}); raise an error instead") from error
        except Exception as error:
            raise RunFailed(
                f"val.metrics: {dotted} raised {type(error).__name__}: {error}. Mend it, or leave it out: "
                "val.metrics may change when the run is resumed"
            ) from error
        parts = {f"{name}/{key}": part for key, part in given.items()} if isinstance(given, Mapping) else {name: given}
        found |= {key: _mean(part, len(responses), f"val.metrics: {dotted}") for key, part in parts.items()}
    return found


def _mean(given: Any, count: int, what: str) -> float:
    """A number as it is; of a list, an array or a tensor with one number a response, the mean."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if several and len(given) != count:
        raise RunFailed(f"{what} gave {len(given)} numbers for {count} responses")
    try:
        numbers = [float(value) for value in given] if several else [float(given)]
    except (TypeError, ValueError) as error:
        raise RunFailed(
            f"{what} gave {repr(given)[:80]} ({error}); wanted is a number, a list of one number a response, or a dict "
            "of those"
        ) from error
    mean = sum(numbers) / len(numbers)
    if isinstance(given, str | bytes) or not math.isfinite(mean):
        raise RunFailed(f"{what} gave {repr(given)[:80]}: a finite number is wanted")
    return mean
