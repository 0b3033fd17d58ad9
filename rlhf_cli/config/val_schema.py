"""Validation: how often, on what, and what is measured beside rlhf's own metrics."""

from typing import Annotated

from pydantic import Field, field_validator

from rlhf_cli.config.section import Before, Count, CountOrZero, Section

OWN = (
    "score", "reward", "kl", "perplexity", "repetition", "distinct_1", "distinct_2", "response_length", "eos_rate",
    "entropy", "gold_score", "penalty", "source", "ptx_perplexity", "nonfinite",
)  # fmt: skip
"""val/<name> of rlhf itself; some have parts, as val/score/positive."""


class Val(Section):
    every: int = CountOrZero
    prompts: int = Count
    batch_size: int = Count
    metrics: Annotated[list[str], Before([])] = Field(default_factory=list)

    @field_validator("metrics")
    @classmethod
    def _names_of_their_own(cls, metrics: list[str]) -> list[str]:
        for dotted in metrics:
            module, _, name = dotted.rpartition(":")
            if not module or not name.isidentifier():
                raise ValueError(
                    f"val.metrics=[{dotted}]: module:function is wanted, as val.metrics=[my_metrics:count]"
                )
            if name in OWN:
                raise ValueError(f"val.metrics=[{dotted}]: val/{name} is rlhf's own: give the function another name")
        names = metric_names(metrics)
        if len(set(names)) < len(names):
            raise ValueError(f"val.metrics={metrics}: two functions of one name would be one metric: rename one")
        return metrics


def metric_names(metrics: list[str]) -> list[str]:
    """The last part of each module:function, by which it is logged: val/<name>."""
    return [dotted.rpartition(":")[2] for dotted in metrics]
