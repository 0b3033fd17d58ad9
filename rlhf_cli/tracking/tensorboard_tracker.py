"""TensorBoard: scalars, samples as text, and the config as hyper-parameters."""

from pathlib import Path
from typing import Any

from rlhf_cli.tracking.text import markdown_text
from rlhf_cli.tracking.wandb_tracker import without_secrets


class TensorboardTracker:
    """Event files under `<folder>/tensorboard`; on resume what was written after `resume_step` is purged."""

    def __init__(self, folder: Path, config: dict[str, Any], *, resume_step: int | None) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if resume_step is None:
            for summary in hparams(scalars_of(without_secrets(config)), {"val/score": 0.0, "val/kl": 0.0}):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._writer.add_text("samples", as_table(rows), step)

    def message(self, text: str) -> None:
        """Messages are for the console."""

    def alert(self, title: str, text: str) -> None:
        self._writer.add_text("alerts", markdown_text(f"{title}: {text}"))

    def finish(self, state: str) -> None:
        self._writer.add_text("state", state)
        self._writer.close()


def as_table(rows: list[dict[str, Any]]) -> str:
    """Samples as a Markdown table; what a model wrote is escaped."""
    lines = ["| input | output | score | class |", "|---|---|---|---|"]
    for row in rows:
        told = (markdown_text(row["prompt"]), markdown_text(row["response"]), f"{row['score']:.3f}", row["class"])
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def scalars_of(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's leaves by their dotted keys; what is no number, truth or text becomes text."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            leaves |= scalars_of(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves
