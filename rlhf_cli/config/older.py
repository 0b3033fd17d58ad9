"""What an older release saved, in today's form: keys that it lacks mean "as before"."""

import json
from copy import deepcopy
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhf_cli import __version__
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.section import Before, Section

ABSENT: Any = object()


def as_before(saved: dict[str, Any], schema: type[Section], today: dict[str, Any]) -> dict[str, Any]:
    """A saved config with every key of today's schema.

    A key that it lacks takes the value that the schema states (`Before`, else the field's default), else today's.
    A null under a key that is gone is dropped; raises UserError where such a key had a value.
    """
    return _whole(renewed(saved), schema, today, "")


def renewed(saved: dict[str, Any]) -> dict[str, Any]:
    """The one place where what an older release saved gets its new name or form: a paragraph each, the oldest first.

    A key that is gone is deleted here where its value meant nothing; with any other it is refused later.
    """
    new = deepcopy(saved)

    algo = _section_of(new, "algo")
    if "refresh_reference" in algo:  # the paper's word since
        algo["steps_per_iteration"] = algo.pop("refresh_reference")

    # second words for algo.epochs and for steps, which the saved config holds as well
    algo.pop("mu", None)
    algo.pop("iterations", None)

    # one tracker, before there could be several
    tracking = _section_of(new, "tracking")
    if isinstance(one := tracking.pop("name", None), str):
        tracking["to"] = [] if one == "none" else [one]

    return new


def marks(schema: type[Section], prefix: str = "") -> dict[str, Any]:
    """Every key of which the schema states what meant "as before", with that value."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        key = prefix + (field.alias or name)
        mark = next((mark for mark in field.metadata if isinstance(mark, Before)), None)
        if mark:
            found[key] = mark.value
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= marks(field.annotation, key + ".")
    return found


def _section_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _whole(saved: dict[str, Any], schema: type[Section], today: dict[str, Any], prefix: str) -> dict[str, Any]:
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    gone = {key: value for key, value in saved.items() if key not in fields and value is not None}
    if gone:
        raise UserError(
            f"the saved config has {written(gone, prefix)}, which this command of rlhf {__version__} does not know: "
            "go on with the release that made the run (its environment.json names it), or start a new run"
        )
    whole = {key: value for key, value in saved.items() if key in fields}
    for key, field in fields.items():
        now = today.get(key, ABSENT)
        value = saved[key] if key in saved else _stated(field, now)
        if value is not ABSENT:
            whole[key] = _within(value, field.annotation, now, f"{prefix}{key}.")
    return whole


def _stated(field: FieldInfo, today: Any) -> Any:
    """What a key meant before it existed."""
    for mark in field.metadata:
        if isinstance(mark, Before):
            return mark.value
    if not field.is_required():
        return field.get_default(call_default_factory=True, validated_data={})
    return {} if _is_section(field.annotation) else today  # of a new section each key says it


def _within(value: Any, kind: Any, today: Any, prefix: str) -> Any:
    """A section's value, or one with sections in it, made whole."""
    section = next((k for k in _kinds(kind) if _is_section(k)), None)
    if section is None or not isinstance(value, dict | list):
        return value
    named = any(get_origin(k) is dict for k in _kinds(kind))
    if isinstance(value, dict) and not named:
        return _whole(value, section, today if isinstance(today, dict) else {}, prefix)
    if isinstance(value, dict):
        now = today if isinstance(today, dict) else {}
        return {name: _within(part, section, now.get(name), f"{prefix}{name}.") for name, part in value.items()}
    return [_within(part, section, None, prefix) for part in value]


def _kinds(annotation: Any) -> list[Any]:
    """An annotation and all that stands in it."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def made_before(what: str, filled: dict[str, Any]) -> str:
    """The line that a run or a sweep of an older release says."""
    means = "they take the value that means as before"
    return f"this {what} was made before these keys existed; {means}: {written(filled)}"


def written(values: dict[str, Any], prefix: str = "") -> str:
    """As one would type them."""
    return ", ".join(f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
