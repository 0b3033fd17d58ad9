"""What was varied: runs that differ in the seed only are one arm; arms that differ in one knob only are compared."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

from rlhf_cli.report.runs import Run

INCIDENTAL = (
    "seed", "resume", "tracking", "device", "cache_dir", "checkpoint", "val", "stop", "objective", "fail_fast",
    "name", "tags", "notes", "weights", "hacking", "trust_config",
)  # fmt: skip
"""Keys that do not change the experiment."""


@dataclass(frozen=True)
class Arm:
    """Runs of one setting, over seeds."""

    config: dict[str, Any]
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        """Each seed's last value; of the update's metrics, which end with the learning rate, the mean over the run."""
        if not metric.startswith("train/"):
            return [value for run in self.runs if (value := run.last(metric)) is not None]
        curves = [run.curve(metric) for run in self.runs]
        return [mean(value for _, value in curve) for curve in curves if curve]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return mean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over seeds; None for one."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Knob:
    """A thing that can be chosen: the keys that belong to it, and what its setting is called."""

    name: str
    keys: tuple[str, ...]
    question: str
    setting: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Comparison:
    """Arms that differ in one knob and in nothing else."""

    knob: Knob
    arms: dict[Any, Arm]
    """By the knob's setting."""
    context: str
    """In what this comparison differs from the others of its knob."""


def _model(config: dict[str, Any]) -> str:
    return str(config["actor.path"] or config["actor.name"])


def _reward(config: dict[str, Any]) -> str:
    return f"{config['reward.fn'] or config['reward.path'] or config['reward.name']} on {config['reward.text']}"


def _gold(config: dict[str, Any]) -> str:
    return f"gold {config.get('gold.fn') or config.get('gold.path') or config.get('gold.name')}"


def _value(key: str, config: dict[str, Any]) -> Any:
    return config.get(key)


def _penalty(config: dict[str, Any]) -> str:
    weight, n = config["penalty.weight"], config["penalty.n"]
    return (
        "off"
        if not weight
        else f"n = {', '.join(map(str, n)) if isinstance(n, list) else n}"
        + (f", weight {weight:g}" if weight != 1 else "")
    )


KNOBS = (
    Knob("actor", ("actor", "critic"), "Does it matter which model learns?", _model),
    Knob("reward model", ("reward",), "What does another reward model, or another view of the text, change?", _reward),
    Knob(
        "n-gram penalty", ("penalty",), "Does the n-gram penalty stop the repeating, and what does it cost?", _penalty
    ),
    Knob("gold", ("gold",), "What does another judge that is not trained on say?", _gold),
    Knob("prefixes", ("data",), "Short or long prefixes?", lambda c: c["data.name"]),
    Knob(
        "algorithm", ("algo", "critic"), "Which algorithm reaches which score, at which KL?", lambda c: c["algo.name"]
    ),
    Knob("beta", ("algo.beta",), "What does beta, the weight of the KL penalty, do?", lambda c: c["algo.beta"]),
    Knob("epsilon", ("algo.epsilon",), "What does epsilon, the clip range, do?", lambda c: c["algo.epsilon"]),
    Knob("lambda", ("algo.lambda",), "What does lambda of GAE do?", lambda c: c["algo.lambda"]),
)


def arms(runs: list[Run]) -> list[Arm]:
    """Runs by setting, in the order they come in."""
    grouped: dict[Any, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_frozen(_without(run.config, INCIDENTAL)), []).append(run)
    return [Arm(members[0].config, sorted(members, key=lambda r: r.seed)) for members in grouped.values()]


def comparisons(found: list[Arm]) -> list[Comparison]:
    """Every set of two or more arms that differ in one knob only; knobs in the order of KNOBS, then other keys."""
    others = [Knob(key, (key,), f"What does {key} change?", partial(_value, key)) for key in other_keys(found)]
    result = []
    for knob in (*KNOBS, *(other for other in others if other.name != "steps")):
        groups: dict[Any, list[Arm]] = {}
        for arm in found:
            groups.setdefault(_frozen(_without(arm.config, (*INCIDENTAL, *knob.keys))), []).append(arm)
        matched = [chosen for group in groups.values() if len(chosen := _one_each(knob, group, found)) > 1]
        rest = [_without(next(iter(chosen.values())).config, (*INCIDENTAL, *knob.keys)) for chosen in matched]
        telling = _telling(rest)
        for chosen, config in zip(matched, rest, strict=True):
            context = ", ".join(f"{key.removesuffix('.name')}={config.get(key)}" for key in telling)
            names = told_apart(list(chosen))
            result.append(Comparison(knob, {names[setting]: arm for setting, arm in chosen.items()}, context))
    return result


def told_apart(settings: list[Any]) -> dict[Any, Any]:
    """Settings by what they are called: of each path in them as many of its last names as tell them apart."""

    def short(setting: Any, count: int) -> Any:
        if not isinstance(setting, str):
            return setting
        return re.sub(r"(?<!\S)[/~]\S+", lambda found: "/".join(found[0].split("/")[-count:]), setting)

    for count in range(1, max((str(s).count("/") for s in settings), default=0) + 1):
        names = [short(setting, count) for setting in settings]
        if len(set(names)) == len(settings):
            return dict(zip(settings, names, strict=True))
    return {setting: setting for setting in settings}


def _telling(configs: list[dict[str, Any]]) -> list[str]:
    """Keys that tell these configs apart: of those that follow from another one, only that; names before the rest."""
    kept: list[str] = []
    for key in sorted(_differing(configs), key=lambda k: (not k.endswith(".name"), k)):
        if not any(_follows([c.get(key) for c in configs], [c.get(other) for c in configs]) for other in kept):
            kept.append(key)
    return kept


def _follows(values: list[Any], settings: list[Any]) -> bool:
    """Whether each setting has one value only."""
    pairs = {(repr(s), repr(v)) for s, v in zip(settings, values, strict=True)}
    return len(pairs) == len(set(map(repr, settings)))


def other_keys(found: list[Arm]) -> list[str]:
    """The keys that vary and do not follow from the settings of the knobs that they belong to."""
    configs = [arm.config for arm in found]
    differing = _differing([_without(config, INCIDENTAL) for config in configs])

    def told(key: str) -> bool:
        values = [config.get(key) for config in configs]
        owners = [knob for knob in KNOBS if _covers(knob.keys, key)]
        named = key.endswith(".hub") and key.replace(".hub", ".name") in differing
        settings = [tuple(knob.setting(config) for knob in owners) for config in configs]
        return named or (bool(owners) and _follows(values, settings))

    return sorted(key for key in differing if not told(key))


def numeric(settings: Iterable[Any]) -> bool:
    """Whether they are numbers, which have an order; true and false have none."""
    return all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings)


def _one_each(knob: Knob, group: list[Arm], everywhere: list[Arm]) -> dict[Any, Arm]:
    """One arm a setting; of several (one algorithm with many betas) the one that most other arms are near to."""
    chosen: dict[Any, Arm] = {}
    for arm in group:
        setting = knob.setting(arm.config)
        if setting not in chosen or _neighbours(arm, everywhere) > _neighbours(chosen[setting], everywhere):
            chosen[setting] = arm
    return dict(sorted(chosen.items())) if numeric(chosen) else chosen


def _neighbours(arm: Arm, everywhere: list[Arm]) -> int:
    """How many arms differ from this one in one knob."""
    mine = _without(arm.config, INCIDENTAL)
    apart = [_differing([mine, _without(other.config, INCIDENTAL)]) for other in everywhere]
    return sum(any(all(_covers(knob.keys, key) for key in keys) for knob in KNOBS) for keys in apart if keys)


def _differing(configs: list[dict[str, Any]]) -> set[str]:
    keys = {key for config in configs for key in config}
    return {key for key in keys if len({repr(config.get(key)) for config in configs}) > 1}


def _without(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not _covers(keys, key)}


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in keys)


def _frozen(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(value)) for key, value in config.items()))
