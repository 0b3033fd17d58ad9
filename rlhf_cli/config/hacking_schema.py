"""The keys of the detection of reward hacking."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from rlhf_cli.config.section import Before, Section

BEFORE = ["garbled", "repetition", "shared_phrases", "off_topic", "abuse", "gold_gap"]
SIGNS = {
    *BEFORE, "self_similarity", "rank_correlation", "disagreement", "kl", "length", "eos_loss", "entropy", "saturation",
    "kept/words", "kept/sentences", "kept/half", "outliers",
}  # fmt: skip
TOPICS, ABUSES = ("auto", "film", "none"), ("english", "none")


class Hacking(Section):
    signs: Annotated[list[str], Before(BEFORE)] = Field(min_length=1)
    topic: Annotated[str, Before("film")] = Field(min_length=1)
    abuse: Annotated[str, Before("english")] = Field(min_length=1)
    edits: Annotated[bool, Before(False)]
    outliers: Annotated[bool, Before(False)]

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        for key, named, known in (("topic", self.topic, TOPICS), ("abuse", self.abuse, ABUSES)):
            if named not in known and not Path(named).is_file():
                raise ValueError(f"hacking.{key}={named}: {' | '.join(known)} | a text file of words")
        if unknown := sorted(set(self.signs) - SIGNS):
            raise ValueError(f"hacking.signs: {', '.join(unknown)} is none of {', '.join(sorted(SIGNS))}")
        unread = [sign for sign in self.signs if sign.startswith("kept/")]
        if unread and not self.edits:
            raise ValueError(f"hacking.signs={','.join(unread)} needs hacking.edits=true")
        if "outliers" in self.signs and not self.outliers:
            raise ValueError("hacking.signs=outliers needs hacking.outliers=true")
        return self
