"""LoRA's keys."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf_cli.config.section import CountOrZero, Section


class Lora(Section):
    rank: int = CountOrZero
    alpha: float = Field(gt=0)
    targets: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]]
    dropout: Literal[0]
