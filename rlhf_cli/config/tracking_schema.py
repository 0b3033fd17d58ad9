"""Where a run is logged, and what it is called."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf_cli.config.section import Before, Section


class Tracking(Section):
    to: list[Literal["wandb", "offline", "tensorboard", "trackio", "mlflow"]]
    project: str
    entity: str | None
    group: str | None

    @model_validator(mode="after")
    def _one_wandb(self) -> Self:
        if {"wandb", "offline"} <= {*self.to}:
            raise ValueError("tracking=[wandb,offline] are the same tracker: offline keeps it off the network")
        return self

    @property
    def wandb(self) -> Literal["wandb", "offline"] | None:
        """How W&B is to log, if it is."""
        return next((name for name in ("wandb", "offline") if name in self.to), None)


class Named(Section):
    """What a run is called, and which policy it starts from."""

    name: Annotated[str | None, Before(None)]
    tags: Annotated[list[str], Before([])]
    notes: Annotated[str, Before("")]
    from_: Annotated[str | None, Before(None)] = Field(alias="from")


def listed(values: dict[str, Any]) -> dict[str, Any]:
    """A composed config with its trackers as a list. In conf/ each is a key, so that Hydra adds them up where the
    command line names several: tracking=[wandb,tensorboard]."""
    tracking = values.get("tracking")
    if not isinstance(tracking, dict) or not isinstance(tracking.get("to"), dict):
        return values
    return values | {"tracking": tracking | {"to": [name for name, wanted in tracking["to"].items() if wanted]}}
