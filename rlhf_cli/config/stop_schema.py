"""When a run stops before its last step: the answer to reward hacking, and rules of the user's."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlhf_cli.config.section import Before, Section
from rlhf_cli.config.val_schema import OWN

TRAIN = (
    "advantage_length_corr", "approx_kl", "beta", "beta_old", "clipfrac", "clipfrac_dual", "cross_entropy", "entropy",
    "eos_rate", "explained_variance", "grad_norm", "groups_drawn", "kl", "kl_k3", "kl_loss", "logprob_mismatch", "loss",
    "lr", "nonfinite", "pairwise_accuracy", "pairwise_loss", "ptx_loss", "ratio_max", "repetition", "replayed_groups",
    "response_length", "reward", "reward_model_accuracy", "score", "trust_region_kl", "trust_region_share", "updates",
    "value_clipfrac", "value_loss", "zero_variance_groups",
)  # fmt: skip
"""train/<name> that some algorithm logs."""
PARTS = ("train/penalty/", "train/source/", "train/advantage_share/", "hacking/", "time/", "throughput/", "memory/")
"""What begins so has names that depend on the config."""
RULE = re.compile(r"\s*([\w/.\-]+?)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    """`<metric> <op> <number>`."""

    metric: str
    op: str
    number: float

    @staticmethod
    def of(text: str) -> "Rule":
        """Read, never run. Raises ValueError."""
        found = RULE.fullmatch(text)
        if not found:
            raise ValueError(
                f"stop.when={text}: a metric, one of < <= > >=, and a number are wanted, as stop.when='val/kl > 20'"
            )
        return Rule(found[1], found[2], float(found[3]))

    def met(self, value: float) -> bool:
        match self.op:
            case "<":
                return value < self.number
            case "<=":
                return value <= self.number
            case ">":
                return value > self.number
            case _:
                return value >= self.number


class Stop(Section):
    on_hacking: bool | Literal["warn", "raise_beta", "rollback", "stop"]
    raise_by: Annotated[float, Before(2.0)] = Field(2.0, gt=1)
    times: Annotated[int, Before(3)] = Field(3, ge=1)
    hacking_index: Annotated[float, Before(0.5)] = Field(gt=0, le=1)
    hacking_by: Annotated[Literal["index", "index_low"], Before("index")] = "index"
    when: Annotated[list[str], Before([])] = Field(default_factory=list)
    patience: Annotated[int, Before(1)] = Field(1, ge=1)

    @field_validator("when", mode="before")
    @classmethod
    def _one_or_several(cls, when: Any) -> Any:
        return [when] if isinstance(when, str) else when

    @field_validator("when")
    @classmethod
    def _readable(cls, when: list[str]) -> list[str]:
        for text in when:
            Rule.of(text)
        return when

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(map(Rule.of, self.when))


def check_metrics(rules: tuple[Rule, ...], of_users: list[str]) -> None:
    """Raise ValueError where a rule asks for a metric that no run logs. `of_users`: the names of val.metrics."""
    known = [f"val/{name}" for name in (*OWN, *of_users)]
    for rule in rules:
        named = any(rule.metric == name or rule.metric.startswith(f"{name}/") for name in known)
        train = rule.metric.removeprefix("train/") in TRAIN and rule.metric.startswith("train/")
        if not (named or train or rule.metric.startswith(PARTS)):
            every = [*known, *(f"train/{name}" for name in TRAIN), "hacking/index"]
            near = get_close_matches(rule.metric, every, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"stop.when: there is no metric {rule.metric}.{hint} (docs/usage.md says which there are)")
