"""What a config leaves to the machine: where weights are, which reviews there are. Asked before anything is loaded."""

from typing import Any

from rlhf_cli.config import hub
from rlhf_cli.config.weights import find

IMDB = "stanfordnlp/imdb"
JUDGES = ("reward", "gold")


def settled_sources(values: dict[str, Any]) -> dict[str, Any]:
    """The values with `data.source=auto` decided and `weights` filled in, for models that name a package or a hub id
    of their own. Raises UserError where weights are nowhere."""
    data = values.get("data")
    if isinstance(data, dict) and data.get("source") == "auto":
        values = values | {"data": data | {"source": available_reviews()}}
    if "weights" not in values or values.get("scale") == "mini":
        return values
    found = {}
    models = {group: values.get(group) for group in ("actor", "critic", *JUDGES)}
    if isinstance(gold := models["gold"], dict):
        models |= {f"gold {name}": judge for name, judge in (gold.get("others") or {}).items()}
    for group, model in models.items():
        if not isinstance(model, dict) or model.get("path") or not model.get("hub") or not _small(model, values):
            continue
        needed = group != "critic" or model["name"] != values["actor"]["name"]
        if needed:
            origin = find(f"{group.partition(' ')[0]}={model['name']}", model["hub"], model.get("package")).origin
            found[group] = f"fine-tuned here from {origin}" if model.get("fine_tune") else origin
    return values | {"weights": found}


def _small(model: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether its weights are looked for everywhere: the study's own are the hub's, asked for when they are loaded."""
    return bool(model.get("package")) or values["scale"] == "small"


def available_reviews() -> str:
    """The hub's IMDB where it is on this machine or can be fetched, else the generated reviews."""
    here = hub.dataset_on_this_machine(IMDB)
    return "imdb" if here or hub.obstacle(f"datasets/{IMDB}/resolve/main/README.md") is None else "generated"
