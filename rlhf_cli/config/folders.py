"""Whether a folder that a command will write to can be written, asked before anything is loaded."""

import tempfile
from pathlib import Path

from rlhf_cli.config.errors import UserError


def check_writable(folder: str, key: str) -> None:
    """Raise UserError unless `folder` can be made and written; leaves nothing behind. `key`: what to type instead."""
    try:
        place = Path(folder).expanduser().absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(None, f"{place} is a file")
        with tempfile.TemporaryDirectory(prefix=".rlhf_", dir=place) as inside:
            (Path(inside) / "x").write_text("x")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another {key}=") from None
