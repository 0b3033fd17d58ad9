"""What `rlhf audit` may be told."""

from typing import Literal

from pydantic import Field

from rlhf_cli.config.schema import Config
from rlhf_cli.config.section import Count, Section

Family = Literal["repeat", "insert", "shuffle", "wrap", "truncate", "target", "other"]


class Audit(Section):
    run: str | None
    texts: int = Field(ge=2)
    families: list[Family] = Field(min_length=1)
    rounds: int = Count
    tries: int = Count
    attributed: int = Field(ge=0)
    margin: float = Field(gt=0)
    transfer: list[str]
    fail_below: float | None = Field(ge=0, le=1)


class AuditConfig(Config):
    """`rlhf audit`."""

    audit: Audit
