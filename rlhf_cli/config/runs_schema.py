"""What `rlhf runs` may be told."""

from typing import Literal

from rlhf_cli.config.section import Section


class RunsConfig(Section):
    """`rlhf runs`: it reads folders and trains nothing."""

    folders: list[str]
    sort: Literal["age", "score", "gold", "kl", "hacking", "name", "steps"]
    state: Literal["running", "done", "failed", "interrupted", "dead"] | None
    tag: str | None
    as_json: bool
