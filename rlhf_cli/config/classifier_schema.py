"""What `rlhf classifier-train` may be told."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf_cli.config.lora_schema import Lora
from rlhf_cli.config.section import Before, Count, Section


class ClassifierTrain(Section):
    start: str | None
    part: Literal["all", "first", "second"]
    neutral: bool
    texts: int = Count
    epochs: int = Count
    batch: int = Count
    lr: float = Field(gt=0)
    max_tokens: int = Field(ge=4)
    held_out: float = Field(gt=0, lt=1)
    every: int = Count
    patience: int = Count
    lora: Annotated[Lora | None, Before(None)] = None
    class_weights: dict[Literal["negative", "neutral", "positive"], float] | None
