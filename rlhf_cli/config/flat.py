"""A config as one level of keys with dots, and back."""

from typing import Any


def covered(key: str, prefixes: set[str]) -> bool:
    """Whether a key is one of these, or in one; the empty one holds them all."""
    return any(prefix == "" or key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"algo": {"beta": 1}} -> {"algo.beta": 1}"""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    values: dict[str, Any] = {}
    for key, leaf in leaves.items():
        *parents, name = key.split(".")
        at = values
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = leaf
    return values
