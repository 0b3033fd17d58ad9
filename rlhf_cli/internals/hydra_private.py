"""What rlhf uses of Hydra beyond its documented interface. Tested with hydra-core 1.3.

- The parser of Hydra's own flags, and of the override grammar.
- How the basic sweeper splits a command line into jobs.
- What it takes to launch a given list of jobs with a launcher: Hydra itself knows only sweeps it has composed.
"""

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.plugins import Plugins

__all__ = [
    "BasicSweeper", "Callbacks", "GlobalHydra", "Hydra", "IntervalSweep", "OverridesParser", "Plugins",
    "create_config_search_path", "get_args_parser",
]  # fmt: skip
