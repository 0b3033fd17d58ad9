"""Whether folders that a command will write to or read models from are there, asked before anything is loaded."""

import tempfile
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError


def check_writable(folder: str, key: str) -> None:
    """Raise UserError unless `folder` can be made and written; leaves nothing behind. `key`: what to type instead."""
    if not folder.strip():
        raise UserError(f"{key}= names no folder: leave it out, or give one")
    try:
        place = Path(folder).expanduser().absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(None, f"{place} is a file")
        with tempfile.TemporaryDirectory(prefix=".rlhf_", dir=place) as inside:
            (Path(inside) / "x").write_text("x", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another {key}=") from None


def check_writable_file(file: Path, key: str) -> None:
    """Raise UserError unless a file can be written there, in a folder that may have to be made."""
    if file.is_dir():
        raise UserError(f"{key}={file} is a folder: give a file in it")
    check_writable(str(file.absolute().parent), key)


def names_a_folder(path: str) -> bool:
    """Whether it can be no hub id, which is owner/name."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1


def check_there(folder: Path, key: str) -> None:
    """Raise UserError where a run's folder, or one of its checkpoints, is not there; names the checkpoints that are."""
    if folder.exists():
        return
    beside = sorted(other.name for other in folder.parent.glob("step_*") if folder.name.startswith("step_"))
    known = f"; there are {', '.join(beside[-5:])}" if beside else " (give a run's folder, or one of its checkpoints)"
    raise UserError(f"{key}={folder}: there is no such folder{known}")


def check_models(config: Any) -> None:
    """Raises UserError where a key names a model folder that is not there; a hub id is looked up when it is loaded."""
    if (against := getattr(config, "against", None)) not in (None, "none"):
        check_there(Path(against).expanduser(), "against")
    groups = {group: getattr(config, group, None) for group in ("actor", "critic", "reward", "gold")}
    groups |= {f"gold.others.{name}": judge for name, judge in getattr(groups["gold"], "others", {}).items()}
    for group, model in groups.items():
        path = getattr(model, "path", None)
        if not path or is_gguf(path) or not names_a_folder(path) or Path(path).expanduser().is_dir():
            continue
        what = "no such file" if path.endswith(GGUF) else "no such folder"
        raise UserError(f"{group}.path={path}: {what} (give a local model folder, a hub id or a .gguf file)")


GGUF = ".gguf"


def is_gguf(path: str) -> bool:
    """Whether it is a file of llama.cpp's format."""
    return path.endswith(GGUF) and Path(path).expanduser().is_file()


def claimed(name: str) -> str:
    """Make a folder of this name, or of the first free one after it: name_2, name_3, … Its maker alone has it, so
    commands that start in the same second write apart. One that only exists is taken."""
    folder, number = Path(name), 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        place = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            place.mkdir()
            return str(place)
        except FileExistsError:
            number += 1
