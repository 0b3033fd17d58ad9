"""`module:function` or `/folder/file.py:function` in a config: a function of the user's own."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_cli.config.errors import UserError

_loaded: dict[Path, ModuleType] = {}


def function_named(dotted: str, key: str, arguments: int | None = None) -> Callable[..., Any]:
    """The function that `key=module:function` names, from a file, the current folder or an installed module.

    `arguments`: how many it must take by position. Raises UserError where there is none.
    """
    module_name, colon, name = dotted.rpartition(":")
    if not (colon and module_name and name):
        raise UserError(f"{key}={dotted}: wanted is module:function, of this folder or installed")
    try:
        found = _of_file(Path(module_name)) if module_name.endswith(".py") else _module(module_name)
        function = getattr(found, name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
        if arguments is not None:
            _takes(function, arguments, key)
    except Exception as error:
        raise _wrong(dotted, key, error) from error
    except SystemExit as error:
        raise _wrong(dotted, key, error) from error
    return function


def _wrong(dotted: str, key: str, error: BaseException) -> UserError:
    plain = isinstance(error, ImportError | AttributeError | TypeError)
    reason = str(error) if plain else f"{type(error).__name__}: {error}"
    return UserError(f"{key}={dotted}: {reason} (allowed: module:function, of this folder or installed)")


def _module(name: str) -> ModuleType:
    """Of the current folder before any other, also where the standard library has one of that name."""
    here = Path.cwd() / f"{name}.py"
    if here.is_file():
        return _of_file(here)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look in the current folder by itself
    return importlib.import_module(name)


def _of_file(file: Path) -> ModuleType:
    """Loaded once. Its folder is on the path, for what it imports; its name is taken where nobody else has it."""
    file = file.absolute()
    if file in _loaded:
        return _loaded[file]
    if not file.is_file():
        raise ImportError(f"{file}: there is no such file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    name = (
        file.stem if file.stem not in sys.modules and file.stem not in sys.stdlib_module_names else f"rlhf_{file.stem}"
    )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[file] = made
    return made


GIVEN = {
    "reward.fn": "prompts, responses",
    "val.metrics": "prompts, responses",
    "algo.loss": "logprobs, old_logprobs, advantages, mask",
}
"""What a function is called with."""


def _takes(function: Callable[..., Any], count: int, key: str) -> None:
    """Raise TypeError unless it can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: it will say for itself
    try:
        signature.bind(*range(count))
    except TypeError as error:
        named = GIVEN.get(key, f"{count} arguments")
        told = f"it is called with {count} arguments ({named}), and {function.__name__} does not take them"
        raise TypeError(f"{told}: {error}") from None
