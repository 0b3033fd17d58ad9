"""What judges texts: rewards, their sources, the judge that is not trained on; and the models behind them."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf_cli.config.section import Before, Count, CountOrZero, Section


class Model(Section):
    name: str
    hub: str | None = None
    package: str | None = None
    path: str | None = None


class FineTune(Section):
    """What makes a classifier of an encoder."""

    part: Literal["all", "first", "second"]
    texts: int = Count
    epochs: int = Count


class Endpoint(Section):
    """Where reward=judge asks."""

    url: str
    model: str
    key_env: str | None
    question: str
    timeout_s: float = Field(gt=0)
    retries: int = CountOrZero
    concurrency: int = Count

    @field_validator("url")
    @classmethod
    def _without_a_key(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "reward.endpoint.url is saved in config.yaml: put no key into it, name the environment variable that "
                "holds it (reward.endpoint.key_env=)"
            )
        return url


class Form(Section):
    """What reward=form wants."""

    min_words: int = Count
    max_words: int = Count
    complete: bool

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"reward.form.min_words={self.min_words} is above reward.form.max_words={self.max_words}")
        return self


class TextJudge(Model):
    """One judge of texts. Keys with a default stand only in the options that use them."""

    target: str = "negative"
    text: Literal["response", "prefix_response", "chat"] = "prefix_response"
    batch_size: int = Field(64, ge=1)
    fn: str | None = None
    normalize: bool = True
    endpoint: Endpoint | None = None
    form: Form | None = None
    fine_tune: FineTune | None = None
    output: Literal["probability", "logit", "log_probability"] = "probability"


class Source(TextJudge):
    """A judge as a part of a reward."""

    weight: float = Field(1.0, gt=0)
    saturate: float | None = Field(None, gt=0)
    cap: float | None = None


class Reward(TextJudge):
    every_tokens: int = Field(0, ge=0)
    combine: Literal["sum", "normalised_sum", "mean", "min", "uncertainty"] = "sum"
    aversion: float = Field(1.0, gt=0)
    saturate: float | None = Field(None, gt=0)
    cap: float | None = None
    sources: dict[str, Source] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _python_and_a_function(self) -> Self:
        if self.name == "python" and not self.fn:
            raise ValueError("reward=python needs a function: reward.fn=my_module:my_function")
        if self.fn and self.name in ("roberta_base", "roberta_large", "vader", "learned"):
            raise ValueError(
                f"reward.fn={self.fn} is for reward=python, not for reward={self.name}: type reward=python"
            )
        return self

    @property
    def all_sources(self) -> "dict[str, Source | Reward]":
        """The judges by name: the sources, or the reward itself."""
        return dict(self.sources) or {self.name: self}


class Gold(TextJudge):
    """The judge that is not trained on, and others beside it: val/gold_score is the first's."""

    others: Annotated[dict[str, TextJudge], Before({})] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if self.name == "none" and self.others:
            raise ValueError(f"gold=none with gold.others={[*self.others]}: one of them is the first, gold=<name>")
        seen: list[TextJudge] = [TextJudge.model_validate(self.model_dump(exclude={"others"}))]
        for name, judge in self.others.items():
            if name == self.name or judge in seen:
                raise ValueError(f"gold: the judge {name} is there twice; name each once")
            if judge.name == "none":
                raise ValueError(f"gold.others.{name} is no judge: leave none away")
            seen.append(judge)
        return self

    @property
    def judges(self) -> dict[str, TextJudge]:
        """By name, the first one first; {}: none."""
        return {} if self.name == "none" else {self.name: self, **self.others}
