"""What rlhf uses of Hydra beyond its documented interface. Tested with hydra-core 1.3.

- The parser of Hydra's own flags, and of the override grammar.
- How the basic sweeper splits a command line into jobs.
- Which overrides choose an option of a group, and how the others are laid onto a composed config.
- What it takes to launch a given list of jobs with a launcher: Hydra itself knows only sweeps it has composed.
"""

from copy import deepcopy
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, OverrideType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

__all__ = [
    "BasicSweeper", "Callbacks", "GlobalHydra", "Hydra", "IntervalSweep", "OverridesParser", "Plugins",
    "create_config_search_path", "get_args_parser", "parted_overrides", "with_values",
]  # fmt: skip


def parted_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(those that say how a config is composed, those that only set values of it, as algo.beta=0.1), within
    `initialize`. Where values are added or deleted (+, ~), whose order with the rest counts, all are of the first."""
    loader: Any = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    values = [o for o in parsed if not loader.repository.group_exists(o.key_or_group) or isinstance(o.value(), dict)]
    values = [o for o in values if not o.is_hydra_override()]
    if not all(o.type == OverrideType.CHANGE and o.package is None for o in values):
        return overrides, []
    set_apart = {id(o) for o in values}
    return [str(o.input_line) for o in parsed if id(o) not in set_apart], [str(o.input_line) for o in values]


def with_values(composed: DictConfig, values: list[str]) -> DictConfig:
    """A copy of a composed config with these values, laid onto it as Hydra itself does."""
    config = deepcopy(composed)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config
