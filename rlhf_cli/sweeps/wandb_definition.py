"""`rlhf sweep wandb …`: the sweep as a definition for W&B's own agents."""

from pathlib import Path
from typing import Any

import yaml

from rlhf_cli.config.arguments import one_by_one
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import check_writable_file


def definition(overrides: list[str]) -> dict[str, Any]:
    """A W&B sweep: grid over lists, bayes where an interval is among the parameters.

    Every job of the grid is composed and checked first; raises UserError. Keys that are not swept go into the command.
    """
    from rlhf_cli.internals.hydra_private import IntervalSweep, OverridesParser

    overrides = [key for typed in overrides for key in one_by_one(typed)]
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(overrides)
    intervals = {o.key_or_group: o.value() for o in parsed if isinstance(o.value(), IntervalSweep)}
    ends = [f"{o.key_or_group}={_ends(o.value())}" if o.key_or_group in intervals else o.input_line for o in parsed]
    grid = plan("train", [str(o) for o in ends], multirun=True, config_dir=None)
    values: dict[str, list[Any]] = {}
    for job in grid.overrides:
        for override in job:
            key, _, value = override.partition("=")
            values.setdefault(key, [])
            if value not in values[key]:
                values[key].append(value)
    swept = {key: found for key, found in values.items() if len(found) > 1 or key in intervals}
    if not swept:
        raise UserError("nothing is swept: give a key several values, as algo.beta=0.02,0.1, or interval(0.01,0.3)")
    fixed = [f"{key}={found[0]}" for key, found in values.items() if key not in swept]
    engine = [o for o in grid.engine if not o.startswith(("hydra.sweep.", "hydra/launcher", "hydra.launcher"))]
    return {
        "project": grid.jobs[0].tracking.project,
        "method": "bayes" if intervals else "grid",
        "metric": {"name": grid.jobs[0].objective, "goal": "maximize"},
        "program": "rlhf",
        "command": ["${env}", "rlhf", "train", *engine, *fixed, "${args_no_hyphens}"],
        "parameters": {
            key: _between(intervals[key]) if key in intervals else {"values": [_plain(v) for v in found]}
            for key, found in swept.items()
        },
    }


def _ends(interval: Any) -> str:
    return f"{interval.start},{interval.end}"


def _between(interval: Any) -> dict[str, Any]:
    kind = "log_uniform_values" if "log" in interval.tags else "uniform"
    return {"distribution": kind, "min": interval.start, "max": interval.end}


def _plain(text: str) -> Any:
    """A number or a truth as Hydra reads it; a text as it was typed, quotes included: Hydra reads it again."""
    from rlhf_cli.internals.hydra_private import OverridesParser

    value = OverridesParser.create().parse_override(f"key={text}").value()
    return value if isinstance(value, bool | int | float) else text


class _Numbers(yaml.SafeDumper):
    """1e-05 without a point is a text to every YAML reader."""


_Numbers.add_representer(
    float,
    lambda dumper, value: dumper.represent_scalar(
        "tag:yaml.org,2002:float", f"{value!r}" if "." in f"{value!r}" else f"{value!r}".replace("e", ".0e")
    ),
)


def write(overrides: list[str]) -> int:
    """YAML to standard output, or to the file that `out=` names."""
    out = [word.partition("=")[2] for word in overrides if word.startswith("out=")]
    told = definition([w for w in overrides if not w.startswith("out=")])
    text = yaml.dump(told, Dumper=_Numbers, sort_keys=False)
    if out:
        check_writable_file(Path(out[-1]).expanduser(), "out")
        Path(out[-1]).expanduser().write_text(text, encoding="utf-8")
        print(f"written: {out[-1]}; start it with: wandb sweep {out[-1]}")
    else:
        print(text, end="")
    return 0
