"""`--config-dir`: a folder of one's own comes before the configs that ship, so that an edited copy is what is read."""

import re
from pathlib import Path
from typing import Any

from rlhf_cli.config.arguments import quoted

_first: list[str] = []
"""The folder of this process, if it was given one."""


def first(folder: str | None) -> None:
    """From now on look there before anywhere else. None: only where the shipped configs are."""
    _first[:] = [str(Path(folder).absolute())] if folder else []
    if not folder:
        return
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    from rlhf_cli.internals.hydra_private import Plugins

    class OwnFolder(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            for place in _first:
                search_path.prepend(provider="--config-dir", path=f"file://{place}", anchor="main")

    known = Plugins.instance().discover(SearchPathPlugin)
    if not any(plugin.__name__ == OwnFolder.__name__ for plugin in known):
        Plugins.instance().register(OwnFolder)


def searchpath(folder: str) -> str:
    """The override by which a sweep's saved command line names the folder."""
    return f"hydra.searchpath=[{quoted(f'file://{Path(folder).absolute()}')}]"


def of_engine(engine: list[str]) -> str | None:
    """The folder that a sweep's saved overrides name."""
    for override in engine:
        if found := re.fullmatch(r"hydra\.searchpath=\['file://(.*)'\]", override):
            return re.sub(r"\\('|\$\{)", r"\1", found[1])
    return None
