"""The one schema that every composed config must pass: unknown keys, ranges, contradictions."""

from math import lcm
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlhf_cli.config.algo_schema import Algo
from rlhf_cli.config.classifier_schema import ClassifierTrain
from rlhf_cli.config.frontier_schema import Frontier
from rlhf_cli.config.hacking_schema import Hacking
from rlhf_cli.config.lora_schema import Lora
from rlhf_cli.config.reward_schema import Gold, Model, Reward
from rlhf_cli.config.section import Before, Count, CountOrZero, Section, Seed
from rlhf_cli.config.stop_schema import Stop, check_metrics
from rlhf_cli.config.tracking_schema import Named, Tracking
from rlhf_cli.config.val_schema import Val, metric_names


class Actor(Model):
    lora: Annotated[Lora | None, Before(None)] = None

    @property
    def rank(self) -> int:
        """Of its adapters; 0: all weights learn."""
        return self.lora.rank if self.lora else 0


LABELERS = ("roberta_large", "roberta_base", "vader")


class Data(Section):
    name: str
    source: str
    min_words: int = Count
    max_words: int = Count
    unit: Annotated[Literal["word", "character"], Before("word")] = "word"
    train: int = Field(ge=3, multiple_of=3)
    test: int = Field(ge=3, multiple_of=3)
    labeler: str
    seed: int = Seed
    one_batch: Annotated[bool, Before(False)] = False

    @field_validator("labeler")
    @classmethod
    def _known_labeler(cls, labeler: str) -> str:
        if labeler in LABELERS or "/" in labeler:
            return labeler
        raise ValueError(f"data.labeler={labeler}: allowed are {', '.join(LABELERS)}, a model folder or a hub id")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"data.min_words={self.min_words} is above data.max_words={self.max_words}")
        return self


class Prompt(Section):
    name: Literal["chat", "plain"]
    system: str | None
    user: str
    escape: Annotated[bool, Before(False)] = False

    @model_validator(mode="after")
    def _has_prefix(self) -> Self:
        if "{prefix}" not in self.user:
            raise ValueError("prompt.user must contain {prefix}: that is where the review's start goes")
        return self


class Rollout(Section):
    engine: Annotated[Literal["native", "vllm"], Before("native")] = "native"
    vllm_memory: Annotated[float, Before(0.3)] = Field(0.3, gt=0, lt=1)
    batch_size: int = Count
    temperature: float = Field(ge=1e-3)
    max_response_length: int = Count
    micro_batch_size: int = Count
    cuda_graphs: Annotated[bool, Before(False)]

    @model_validator(mode="after")
    def _vllm_samples_so(self) -> Self:
        if self.engine == "vllm" and self.temperature < 0.01:
            raise ValueError(f"rollout.temperature={self.temperature:g}: rollout.engine=vllm samples from 0.01 on")
        return self


class Optim(Section):
    name: Annotated[Literal["adamw", "adamw_8bit"], Before("adamw")] = "adamw"
    actor_lr: float = Field(ge=0)
    critic_lr: float = Field(ge=0)
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int = CountOrZero
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    value_head_lr: Annotated[float | None, Before(None)] = Field(ge=0)
    micro_batch_size: Annotated[int, Count] | Literal["auto"]
    gradient_checkpointing: bool

    def moments(self, *, on_gpu: bool) -> int:
        """Bytes to count for the optimizer, of each weight that learns. On a CPU hardly anything is gained:
        the measured peak is that of adamw (docs/memory.md)."""
        return 2 if self.name == "adamw_8bit" and on_gpu else 8


class Penalty(Section):
    weight: float = Field(ge=0)
    n: Annotated[int, Count] | list[Annotated[int, Count]]
    level: Literal["token", "word"]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every n, once."""
        return tuple(dict.fromkeys([self.n] if isinstance(self.n, int) else self.n))

    @model_validator(mode="after")
    def _some_n(self) -> Self:
        if not self.sizes:
            raise ValueError("penalty.n=[]: give a number, as penalty.n=3, or several, as penalty.n=[2,3,4]")
        return self


class Checkpoint(Section):
    every: int = CountOrZero
    keep_last: int | None = Field(ge=1)
    keep_every: int = CountOrZero
    best: str | None = Field(pattern=r"^(val|hacking)/.+")
    best_is: Literal["highest", "lowest"]
    merge: Annotated[bool, Before(False)] = False


class Config(Named):
    """What `rlhf train` runs on; the other commands add a few keys of their own."""

    seed: int = Seed
    steps: int = CountOrZero
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16"]
    scale: Literal["mini", "small", "full"]
    weights: Annotated[dict[str, str], Before({})] = Field(default_factory=dict)
    cache_dir: str = Field(min_length=1)
    trust_config: Annotated[bool, Before(False)]
    resume: str | None
    objective: str = Field(pattern=r"^(val|train)/.+")
    kl_budget: float | None = Field(gt=0)
    fail_fast: bool
    shard: bool
    on_nonfinite: Literal["stop", "skip"]
    profile_step: Annotated[int | None, Before(None)] = Field(ge=1)
    detect_anomaly: Annotated[bool, Before(False)]
    actor: Actor
    critic: Model
    reward: Reward
    gold: Gold
    data: Data
    prompt: Prompt
    algo: Algo
    rollout: Rollout
    optim: Optim
    penalty: Penalty
    val: Val
    checkpoint: Checkpoint
    stop: Stop
    hacking: Hacking
    tracking: Tracking

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        batch, algo = self.rollout.batch_size, self.algo
        if algo.needs_critic and self.critic.name == "none" and not self.critic.path:
            raise ValueError(f"algo.advantage={algo.advantage} needs a critic: drop critic=none, or use algo=grpo")
        if algo.retrain_epochs and self.reward.name != "learned":
            raise ValueError(
                f"algo={algo.name} trains its reward model on: reward={self.reward.name} is fixed. Make one (rlhf "
                "reward-train) and give reward=learned reward.path=<folder>, or keep it fixed: algo.retrain_epochs=0"
            )
        if self.reward.every_tokens and algo.advantage not in ("gae", "returns"):
            raise ValueError(
                f"reward.every_tokens={self.reward.every_tokens} pays while a response is written, but "
                f"algo.advantage={algo.advantage} sees only whole responses: use algo=ppo, or reward.every_tokens=0"
            )
        if self.shard and self.optim.micro_batch_size == "auto":
            raise ValueError("shard=true runs its processes in step: give optim.micro_batch_size a number")
        if self.reward.every_tokens and self.reward.combine == "normalised_sum":
            raise ValueError("reward.combine=normalised_sum pays whole responses: use reward.every_tokens=0")
        if self.actor.rank and (self.shard or algo.update == "trust_region" or algo.steps_per_iteration):
            what = "shard=true" if self.shard else f"algo={algo.name}"
            raise ValueError(f"actor.lora.rank={self.actor.rank}: adapters do not go with {what}; drop it, or rank=0")
        if self.shard and (algo.update == "trust_region" or self.critic.name == "shared"):
            raise ValueError("shard=true needs algo.update=gradient and a critic of its own (not critic=shared)")
        if algo.update == "trust_region" and self.critic.name == "shared":
            raise ValueError("algo.update=trust_region moves the actor by itself: use another critic than shared")
        if algo.overlong_buffer > self.rollout.max_response_length:
            raise ValueError(
                f"algo.overlong_buffer={algo.overlong_buffer} is longer than "
                f"rollout.max_response_length={self.rollout.max_response_length}"
            )
        fits = lcm(algo.group_size, algo.minibatches)
        for key, value in (("group_size", algo.group_size), ("minibatches", algo.minibatches)):
            if batch % value:
                raise ValueError(
                    f"rollout.batch_size={batch} is not a multiple of algo.{key}={value} "
                    f"(try rollout.batch_size={-(-batch // fits) * fits})"
                )
        if self.profile_step and self.profile_step > self.steps:
            raise ValueError(f"profile_step={self.profile_step}: a run of steps={self.steps} never takes it")
        check_metrics(self.stop.rules, metric_names(self.val.metrics))
        return self

    @model_validator(mode="after")
    def _enough_to_validate_on(self) -> Self:
        if self.val.prompts > self.data.test:
            raise ValueError(
                f"val.prompts={self.val.prompts} but data.test={self.data.test}: lower one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.shard and self.optim.name == "adamw_8bit":
            raise ValueError("shard=true splits its optimizer's float32 moments: use optim.name=adamw")
        if self.rollout.engine == "vllm" and self.algo.old_logprobs == "rollout":
            raise ValueError(
                "algo.old_logprobs=rollout would learn from log-probs that another program rounded: with "
                "rollout.engine=vllm use algo.old_logprobs=recompute"
            )
        if self.rollout.engine == "vllm" and self.shard:
            raise ValueError(
                "rollout.engine=vllm samples in one process: drop shard=true, or give rollout.engine=native"
            )
        return self


class EvalConfig(Config):
    """`rlhf eval`."""

    checkpoint: str | None  # type: ignore[assignment]  # here the key names one, there it says how often


class SampleConfig(EvalConfig):
    """`rlhf sample`."""

    prefixes: list[str]
    out: str | None
    n: int = Count
    best_of: int | None = Field(ge=2)


class CompareConfig(EvalConfig):
    """`rlhf compare`."""

    prefixes: list[str]
    against: str | None
    fail_below: float | None = Field(ge=0, le=1)


class FrontierConfig(EvalConfig):
    """`rlhf frontier`."""

    runs: list[str]
    out: str | None
    frontier: Frontier


class RewardTrain(Section):
    data: str | None
    prompts: int = Count
    responses: int = Field(ge=2)
    held_out: float = Field(gt=0, lt=1)
    start: str | None
    epochs: int = Count
    batch: int = Count
    lr: float | None = Field(gt=0)
    lora: Annotated[Lora | None, Before(None)] = None


class RewardTrainConfig(Config):
    """`rlhf reward-train`."""

    reward_train: RewardTrain

    @model_validator(mode="after")
    def _starts_anew(self) -> Self:
        if self.resume:
            raise ValueError(f"resume={self.resume}: reward-train does not resume, it starts anew in its own folder")
        return self


class DataConfig(Config):
    """`rlhf data`, which validates nothing."""

    @model_validator(mode="after")
    def _enough_to_validate_on(self) -> Self:
        return self


class ClassifierTrainConfig(Config):
    """`rlhf classifier-train`."""

    classifier_train: ClassifierTrain

    @model_validator(mode="after")
    def _starts_anew(self) -> Self:
        if self.resume:
            raise ValueError(
                f"resume={self.resume}: classifier-train does not resume, it starts anew in its own folder"
            )
        return self


class Probe(Section):
    texts: list[str]
    file: str | None
    run: str | None
    reviews: int = Count
    models: list[str] = Field(min_length=1)


class ProbeConfig(Config):
    """`rlhf probe`."""

    probe: Probe


class ModelsConfig(Config):
    """`rlhf models`."""

    rebuild: bool
    out: str | None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.out and not self.rebuild:
            raise ValueError(f"out={self.out} is where rebuild=true puts the miniatures: add rebuild=true")
        if self.rebuild and self.scale != "mini":
            raise ValueError("rebuild=true makes the miniatures: add scale=mini")
        return self


class ReportConfig(Section):
    """`rlhf report`: it reads folders and trains nothing."""

    runs: list[str]
    out: str | None
    title: str
    live: bool
    tracking: Tracking
