"""Why a model folder cannot be loaded, where transformers' own words mislead."""

import json
from pathlib import Path


def why_not(path: str, error: Exception) -> str:
    """What is wrong with the folder (or the hub's model), and what to do; else the error's first line."""
    folder, text = Path(path), str(error).strip()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "there is no config.json in it (a model folder holds config.json, weights and a tokenizer's files)"
    if "weights_only" in text.lower() or "weights only" in text.lower():
        return (
            "its weights are a pickle that holds more than tensors, and rlhf runs no code of a file: give the model as "
            "safetensors (model.safetensors)"
        )
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says: they are of different models"
    if _brings_code(folder):
        return "its config.json asks for code of its own (auto_map), which rlhf does not run: give a model without it"
    return text.splitlines()[0] if text else type(error).__name__


def _brings_code(folder: Path) -> bool:
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
