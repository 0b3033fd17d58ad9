"""What a miniature's response is worth, by the grammar that the reviews came from: no model, no detector knows it.

Each sentence of prefix and response that lies in the response is looked up in the templates of `data/generated_words`.
A negative one is worth 1, a neutral one ½, a positive one 0. One that the grammar cannot make there is worth 0: of no
template, or of one that the text has used before, which no review does. A response is worth its sentences' mean.
"""

import re
from functools import cache

from rlhf_cli.data.generated import _ONCE
from rlhf_cli.data.generated_words import BODIES, CLOSINGS, OPENINGS, SLOTS, TURNS
from rlhf_cli.rewards.scorer import joined

WORTH = {"negative": 1.0, "neutral": 0.5, "positive": 0.0}
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"])")
SLOT = re.compile(r"\{(\w+)\}")


def pattern(template: str) -> str:
    """A regular expression of all that a template can become, whatever was said elsewhere in its review."""
    pieces = SLOT.split(template)
    found = "".join(_choices(_ONCE.get(p, p)) if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.sub(r"(?<![A-Za-z])([Aa])\\ ", r"\1n?\\ ", found)


@cache
def _choices(slot: str) -> str:
    return "(?:" + "|".join(sorted(map(pattern, SLOTS[slot]), key=len, reverse=True)) + ")"


@cache
def grammar() -> tuple[re.Pattern[str], list[str]]:
    """(what matches every sentence, with a group for each template; the mood of each template)."""
    tables = [OPENINGS, TURNS, CLOSINGS, *BODIES.values()]
    moods = {line: mood for mood in WORTH for table in tables for line in table[mood]}
    choices = "|".join(f"(?P<t{i}>{pattern(line)})" for i, line in enumerate(moods))
    return re.compile(choices, re.IGNORECASE), list(moods.values())


@cache
def template_of(sentence: str) -> int | None:
    """The number of its template; None for a sentence that the grammar cannot make."""
    found = grammar()[0].fullmatch(sentence)
    return int(found.lastgroup[1:]) if found and found.lastgroup else None


def mood_of(sentence: str) -> str | None:
    """negative, neutral or positive; None for a sentence that the grammar cannot make."""
    number = template_of(sentence)
    return None if number is None else grammar()[1][number]


def worth(prefix: str, response: str) -> float:
    """In [0, 1]. A last sentence that the length limit cut off is left out where there is another one."""
    text = joined(prefix, response).strip()
    sentences, at, used, values = SENTENCE.split(text), 0, set(), []
    for i, sentence in enumerate(sentences):
        at = text.index(sentence, at) + len(sentence)
        cut_off = i + 1 == len(sentences) and sentence[-1:] not in ".!?"
        if at > len(prefix) and not (cut_off and values):
            mood = mood_of(sentence)
            values.append(WORTH[mood] if mood and template_of(sentence) not in used else 0.0)
        used.add(template_of(sentence))
    return sum(values) / len(values) if values else 0.0


def honest_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """`worth` as a reward (`reward=python`): a run that is trained on it may go as far as it likes, and cheats not."""
    starts = [re.search(r"Review start:\n(.*?)\n?(?:assistant)?\n?$", prompt, re.DOTALL) for prompt in prompts]
    prefixes = [found[1] if found else prompt for found, prompt in zip(starts, prompts, strict=True)]
    return [worth(prefix, response) for prefix, response in zip(prefixes, responses, strict=True)]
