"""The algorithm's keys: their ranges, the combinations that make no sense, and which choice reads which key."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from rlhf_cli.config.section import Count, CountOrZero, Section

ON: tuple[Any, ...] = ()
"""In READ_WITH: any value but null, false and 0."""

Conditions = tuple[tuple[str, tuple[Any, ...]], ...]
_GAE: Conditions = (("advantage", ("gae",)),)
_RETURNS: Conditions = (("advantage", ("returns",)),)
_CRITIC: Conditions = (("needs_critic", ON),)
_CLIP: Conditions = (("surrogate", ("clip",)),)
_KL: Conditions = (("kl", ("reward", "loss")),)
_PPO_KL: Conditions = (("surrogate", ("kl_penalty",)),)
_TRUST_REGION: Conditions = (("update", ("trust_region",)),)
_RETRAIN: Conditions = (("retrain_epochs", ON),)

READ_WITH: dict[str, Conditions] = {
    "baseline": _RETURNS,
    "reward_to_go": _RETURNS,
    "group_scale": (("advantage", ("group",)),),
    "gamma": (("advantage", ("gae", "returns")),),
    "lambda": _GAE,
    "value_target": _GAE,
    "value_clip": _CRITIC,
    "value": _CRITIC,
    "epsilon": (("surrogate", ("clip", "cispo")),),
    "epsilon_high": (("surrogate", ("clip", "cispo")),),
    "dual_clip": _CLIP,
    "ratio_level": (("surrogate", ("clip", "ratio")),),
    "kl_estimator": _KL,
    "kl_direction": (*_KL, ("kl_estimator", ("full",))),
    "kl_correction": (("kl", ("loss",)), ("kl_estimator", ("k3", "k1"))),
    "beta": _KL,
    "beta_horizon": (("beta_target", ON),),
    "beta_old": _PPO_KL,
    "beta_old_target": _PPO_KL,
    "beta_old_direction": _PPO_KL,
    "refill_tries": (("filter", ("refill",)),),
    "retrain_history": _RETRAIN,
    "retrain_lr": _RETRAIN,
    "retrain_judge": _RETRAIN,
    "delta": _TRUST_REGION,
    "damping": _TRUST_REGION,
    "cg_steps": _TRUST_REGION,
    "line_search_steps": _TRUST_REGION,
}
"""The keys that only some choices read, with those choices: all of a key's conditions must hold. Every composed config
has all keys (conf/algo/ppo.yaml lists them), so that any can be typed; one that nothing would read is refused."""

TURNED_ON_BY = {
    "needs_critic": "algo.advantage=gae",
    "beta_target": "algo.beta_target=6",
    "retrain_epochs": "algo=grpo_iterative",
}
"""What to type for an ON."""


class Algo(Section):
    """Keys of READ_WITH have a default: an algorithm's YAML names the ones that it reads."""

    name: str
    advantage: Literal["gae", "group", "leave_one_out", "returns"]
    baseline: Literal["none", "batch_mean", "critic"] = "batch_mean"
    reward_to_go: bool = True
    surrogate: Literal["clip", "cispo", "kl_penalty", "ratio", "policy_gradient"]
    loss: str | None = None
    ratio_level: Literal["token", "sequence"] = "token"
    kl: Literal["reward", "loss", "none"]
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    kl_direction: Literal["policy_ref", "ref_policy"] = "policy_ref"
    kl_correction: bool = False
    aggregation: Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_total"]
    group_scale: Literal["std", "none"] = "std"
    whiten: bool
    group_size: int = Count
    epochs: int = Count
    minibatches: int = Count
    target_kl: float | None = Field(gt=0)
    epsilon: float = Field(0.2, gt=0, lt=1)
    epsilon_high: float | None = Field(None, gt=0)
    dual_clip: float | None = Field(None, gt=1)
    beta: float = Field(0.0, ge=0)
    beta_target: float | None = Field(None, gt=0)
    beta_horizon: int = Field(10000, ge=1)
    beta_old: float = Field(0.0, ge=0)
    beta_old_target: float | None = Field(None, gt=0)
    beta_old_direction: Literal["old_policy", "policy_old"] = "old_policy"
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1, alias="lambda")
    value_target: Literal["lambda_return", "final_score", "td0"] = "lambda_return"
    value_clip: float | None = Field(0.2, gt=0)
    value: float = Field(1.0, ge=0)
    entropy: float = Field(ge=0)
    ptx: float = Field(ge=0)
    ptx_source: str | None
    ptx_batch_size: int = Count
    filter: Literal["none", "refill"]
    refill_tries: int = Field(3, ge=1)
    overlong_buffer: int = CountOrZero
    steps_per_iteration: int = CountOrZero
    retrain_epochs: int = CountOrZero
    retrain_history: float = Field(0.1, ge=0, lt=1)
    retrain_lr: float = Field(1e-5, gt=0)
    retrain_judge: str | None = None
    update: Literal["gradient", "trust_region"]
    delta: float = Field(0.01, gt=0)
    damping: float = Field(0.1, gt=0)
    cg_steps: int = Field(8, ge=1)
    line_search_steps: int = Field(8, ge=1)
    old_logprobs: Literal["recompute", "rollout"]

    @property
    def needs_critic(self) -> bool:
        return self.advantage == "gae" or (self.advantage == "returns" and self.baseline == "critic")

    def lacks(self, key: str) -> str | None:
        """What to set so that `key` is read; None where it is."""
        for choice, values in READ_WITH.get(key, ()):
            now = getattr(self, choice)
            if not values and not now:
                return TURNED_ON_BY[choice]
            if values and now not in values:
                return f"algo.{choice}={' or '.join(values)}"
        return None

    @model_validator(mode="after")
    def _typed_keys_are_read(self, info: ValidationInfo) -> Self:
        """`validate(…, typed=…)` says what was typed: what an option brings along is nobody's mistake."""
        fields = {field.alias or name: (name, field.default) for name, field in type(self).model_fields.items()}
        for key in sorted(READ_WITH.keys() & (info.context or {}).get("algo", set())):
            name, default = fields[key]
            value, wanted = getattr(self, name), self.lacks(key)
            if wanted and value != default:
                typed = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(f"algo.{key}={typed} is read only with {wanted}: set that too, or drop algo.{key}")
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        grouped = self.advantage in ("group", "leave_one_out")
        if grouped and self.group_size < 2:
            raise ValueError(
                f"algo.advantage={self.advantage} compares the responses to one prompt: "
                f"algo.group_size={self.group_size} must be at least 2 (try algo.group_size=8)"
            )
        if self.filter == "refill" and not grouped:
            raise ValueError(
                f"algo.filter=refill drops groups of equal rewards, which algo.advantage={self.advantage} does not "
                "have: use algo.advantage=group, or algo.filter=none"
            )
        if self.surrogate == "kl_penalty" and not self.beta_old:
            raise ValueError(
                "algo.surrogate=kl_penalty with algo.beta_old=0 penalizes nothing and clips nothing: try "
                "algo.beta_old=0.5"
            )
        if self.beta_target is not None and (self.kl == "none" or not self.beta):
            raise ValueError(
                "algo.beta_target steers algo.beta by factors and has nothing to steer: set algo.kl=reward "
                "algo.beta=0.03, or algo.beta_target=null"
            )
        return self

    @model_validator(mode="after")
    def _updates_make_sense(self) -> Self:
        if self.surrogate == "policy_gradient" and self.epochs * self.minibatches > 1 and self.update == "gradient":
            raise ValueError(
                "algo.surrogate=policy_gradient is on-policy, one update a batch: set algo.epochs=1 "
                "algo.minibatches=1, or correct for older updates with algo.surrogate=ratio"
            )
        if self.retrain_epochs and not (
            self.advantage in ("group", "leave_one_out") and self.steps_per_iteration and self.filter == "none"
        ):
            raise ValueError(
                "algo.retrain_epochs ranks the responses to one prompt at each algo.steps_per_iteration: it needs "
                "algo=grpo_iterative, or algo.retrain_epochs=0"
            )
        if self.update == "trust_region" and self.ptx:
            raise ValueError("algo.update=trust_region takes no algo.ptx: set algo.ptx=0 or algo.update=gradient")
        if self.update == "trust_region" and self.target_kl is not None:
            raise ValueError(
                "algo.target_kl ends epochs early, and a trust region takes one step: set algo.delta, or "
                "algo.target_kl=null"
            )
        return self
