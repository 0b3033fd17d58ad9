"""What a config says that is wrong, in one message that tells what to type."""

from collections.abc import Iterable
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlhf_cli.config.arguments import quoted
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config


def validate(composed: dict[str, Any], schema: type[BaseModel] = Config, *, typed: Iterable[str] = ()) -> Any:
    """Check a composed config; raise `UserError` with every fault in one message.

    `typed`: the keys on the command line, such as "algo.delta"; those that nothing reads are refused.
    """
    groups: dict[str, set[str]] = {}
    for group, _, key in (name.partition(".") for name in typed):
        groups.setdefault(group, set()).add(key)
    try:
        return schema.model_validate(composed, context=groups)
    except ValidationError as error:
        found: dict[str, dict[str, None]] = {}
        for item in error.errors():  # of a key that may be this or that, one error each
            key, message = _fault(item, schema, composed)
            found.setdefault(key, {})[message] = None
        faults = "\n".join(f"  {key}{_alternatives(list(messages))}" for key, messages in found.items())
        raise UserError(f"The configuration is wrong:\n{faults}") from None


def _fault(item: Any, schema: type[BaseModel], composed: dict[str, Any]) -> tuple[str, str]:
    """(the key and its value as one would type them, or nothing where the message names the key; what is wrong)"""
    parts, given = _typed_part(item["loc"], composed)
    key, kind = ".".join(parts), item["type"]
    shown = f"{key}={_as_typed(given)}: "
    if kind == "extra_forbidden":
        return "", unknown_key(".".join(map(str, item["loc"])), schema)
    if kind == "missing":
        return "", f"{'.'.join(map(str, item['loc']))} is missing: leave it in"
    if kind == "value_error":
        return "", item["msg"].removeprefix("Value error, ")
    if given is None and key in ("critic", "gold", "reward", "actor"):
        none = f": type {key}=none" if key in ("critic", "gold") else ""
        return "", f"{key}=null is no option of a group{none}"
    if kind in ("model_type", "dict_type"):
        return shown, _section(key, schema)
    if (wanted := _wanted(item)) is None:
        return shown, f"{item['msg'][0].lower()}{item['msg'][1:]}"
    fix = ""
    if kind == "list_type":
        fix = f"; in brackets: {_in_shell(key, [given])}" if given is not None else f"; of nothing: {key}=[]"
    elif kind == "string_type" and (key_of_list := isinstance(item["loc"][-1], int)) | (not isinstance(given, list)):
        fix = f"; in quotes: {_in_shell(key, given)}" if key_of_list or given is not None else ""
    return shown, f"wanted is {wanted}{fix}"


def _wanted(item: Any) -> str | None:
    """What an error of pydantic asks for, in words; None where its own say it."""
    context = item.get("ctx", {})
    kinds = {"int": "a whole number", "float": "a number", "number": "a number", "bool": "true or false"}
    kinds |= {"string_type": "a text", "list": "a list"}
    match item["type"]:
        case "literal_error":
            return f"one of {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
        case "string_pattern_mismatch":
            return PATTERNS.get(context["pattern"])
        case kind:
            return kinds.get(kind, kinds.get(kind.partition("_")[0]))


def _alternatives(messages: list[str]) -> str:
    """One message of those for a key that may be this or that."""
    first, *rest = messages
    if not rest:
        return first
    return " or ".join([first.partition(";")[0], *(m.partition(";")[0].removeprefix("wanted is ") for m in rest)])


def _typed_part(loc: tuple[Any, ...], composed: dict[str, Any]) -> tuple[list[str], Any]:
    """The key that one types, and what it holds: a place in a list is no key, and pydantic's name of an alternative
    (`stop.on_hacking.bool`) is none either."""
    at, parts = composed, []
    for part in loc:
        if not isinstance(at, dict) or part not in at:
            break
        at = at[part]
        parts.append(str(part))
    return parts, at


def _as_typed(value: Any) -> str:
    """null, true and texts as in a command line."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return words.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _in_shell(key: str, value: Any) -> str:
    """`key="['2024']"`: texts in quotes of their own, within those of the shell."""
    if isinstance(value, list):
        return f'{key}="[{",".join(quoted(_as_typed(part)) for part in value)}]"'
    return f'{key}="{quoted(_as_typed(value))}"'


def _section(key: str, schema: type[BaseModel]) -> str:
    inside = [name for name in _keys(schema) if name.startswith(f"{key}.") and "." not in name[len(key) + 1 :]]
    if not inside:
        return "this is what a run saves for itself; leave it out"
    without = f"; without it: {WITHOUT[key]}" if key in WITHOUT else ""
    return f"this holds several keys, and one of them is wanted: {', '.join(f'{name}=' for name in inside)}{without}"


PATTERNS = {
    r"^(auto|cpu|cuda(:\d+)?)$": "cpu, cuda, cuda:0 (or the number of another GPU) or auto",
    r"^(val|train)/.+": "a metric, as val/score or train/reward",
    r"^(val|hacking)/.+": "a metric, as val/score or hacking/index",
}
"""What the schema's regular expressions take, in words; a test asks for each of them."""
WITHOUT = {"penalty": "penalty.weight=0", "hacking": "stop.on_hacking=false"}


ELSEWHERE = {
    "lr": "optim.actor_lr", "learning_rate": "optim.actor_lr", "actor_learning_rate": "optim.actor_lr",
    "critic_learning_rate": "optim.critic_lr", "max_steps": "steps", "total_steps": "steps", "kl_coef": "algo.beta",
    "init_kl_coef": "algo.beta", "cliprange": "algo.epsilon", "lam": "algo.lambda", "vf_coef": "algo.value",
    "num_ppo_epochs": "algo.epochs", "ppo_epochs": "algo.epochs", "num_generations": "algo.group_size",
    "mu": "algo.epochs", "iterations": "steps",
    "max_new_tokens": "rollout.max_response_length", "max_completion_length": "rollout.max_response_length",
}  # fmt: skip
"""What other tools, papers and older releases call our keys."""


def unknown_key(key: str, schema: type[BaseModel]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    known = _keys(schema)
    if key in known:
        return f"{key}: the option that is chosen does not read it: drop it, or choose another option"
    by_name = {name.rpartition(".")[2]: name for name in known}
    last = key.rpartition(".")[2]
    near = [ELSEWHERE[last]] if ELSEWHERE.get(last) in known else get_close_matches(key, known, n=1)
    near = near or get_close_matches(last, by_name, n=1)
    hint = f" Did you mean {by_name.get(near[0], near[0])}?" if near else ""
    return f"{key}: there is no such key.{hint} (all keys: rlhf train --cfg job)"


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in schema.model_fields.items():
        full = prefix + (field.alias or name)
        kinds = (field.annotation, *(get_args(field.annotation) if NoneType in get_args(field.annotation) else ()))
        for inner in kinds:  # a section, or one that may be null
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names += _keys(inner, full + ".")
        names.append(full)
    return names
