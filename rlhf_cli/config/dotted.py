"""`module:function` in a config: a function of the user's own."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from rlhf_cli.config.errors import UserError


def function_named(dotted: str, key: str) -> Callable[..., Any]:
    """The function that `key=module:function` names, from the current folder or an installed module.

    Raises UserError where there is none.
    """
    module_name, _, name = dotted.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # an installed command does not look in the current folder by itself
    try:
        function = getattr(importlib.import_module(module_name), name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError, SystemExit) as error:
        allowed = "module:function, of this folder or installed"
        raise UserError(f"{key}={dotted}: {error} (allowed: {allowed})") from error
    return function
