"""What a config says that is wrong, in one message that tells what to type."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

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
        faults = "\n".join(f"  {_fault(item, schema)}" for item in error.errors())
        raise UserError(f"The configuration is wrong:\n{faults}") from None


def _fault(item: Any, schema: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return unknown_key(key, schema)
    if item["type"] == "missing":
        return f"{key} is missing: leave it in"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    if item["type"] == "string_type" and isinstance(item["input"], int | float):
        return f"{key}={item['input']}: a text is wanted, and this is a number; in quotes: {key}=\"'{item['input']}'\""
    if item["input"] is None and "." not in key and key in ("critic", "gold", "reward", "actor"):
        none = ": type critic=none" if key == "critic" else ": type gold=none" if key == "gold" else ""
        return f"{key}=null is no option of a group{none}"
    return f"{key}={item['input']!r}: {message[0].lower()}{message[1:]}"


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
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += _keys(inner, full + ".")
        names.append(full)
    return names
