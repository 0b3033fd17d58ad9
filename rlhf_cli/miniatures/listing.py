"""The miniatures as a table."""

import json
from pathlib import Path
from typing import Any


def show(console: Any, rows: list[tuple[str, str]]) -> None:
    """`rows`: (name, folder)."""
    from rich.table import Table
    from safetensors import safe_open

    table = Table("name", "parameters", "on held-out text", title="miniatures", show_lines=True)
    table.columns[1].justify = "right"
    for name, folder in rows:
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            count = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
        quality = json.loads((Path(folder) / "quality.json").read_text(encoding="utf-8"))
        told = "\n".join(f"{key} {value:.3g}" for key, value in quality.items())
        table.add_row(name, f"{count / 1e6:.2f} M", told)
    console.print(table)
    for _, folder in rows:
        console.print(folder, soft_wrap=True, markup=False, highlight=False)
