"""What `rlhf frontier` may be told."""

from typing import Annotated

from pydantic import Field, field_validator

from rlhf_cli.config.section import Section


class Frontier(Section):
    samples: int = Field(ge=2)
    n: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    betas: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)

    @field_validator("n")
    @classmethod
    def _ascending(cls, n: list[int]) -> list[int]:
        return sorted(set(n) | {1})
