"""The base of every section of the config: unknown keys are refused, and nothing changes after the check."""

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Count = Field(ge=1)
CountOrZero = Field(ge=0)
Seed = Field(ge=0, lt=2**32)


@dataclass(frozen=True)
class Before:
    """On a key that a release added: the value that means what runs did before it, `Annotated[int, Before(0)]`.

    Runs whose saved config lacks the key go on with that value; a test asks for one on every key that is new.
    """

    value: Any


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """steps=true would be 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise PydanticCustomError("number", "input should be a number")
        return value
