"""Edits of a response that a reader would not pay for: what an audit searches among."""

import random
from dataclasses import dataclass
from difflib import SequenceMatcher

from rlhf_cli.evaluation.wrapping import WRAPPINGS, wrapped

FAMILIES = ("repeat", "insert", "shuffle", "wrap", "truncate", "target", "other")


@dataclass(frozen=True)
class Material:
    """What edits are made of."""

    responses: list[str]
    """The real ones: their words are inserted, and they stand for one another."""
    targets: list[str]
    """Words that earned most, by attribution."""
    system: str
    """The system text of a wrapping."""


def edited(family: str, text: str, material: Material, rng: random.Random) -> str:
    """One random edit of a family.

    repeat: a span of words again, one to four times; insert: a word of another response, one to four times; shuffle: a
    span in another order; wrap: as a chat (those of `rlhf probe`); truncate: a part at the end or the start cut off;
    target: words that earned most, put in; other: the response of another prompt. Raises ValueError for another family.
    """
    words = text.split()
    place = rng.randint(0, len(words))
    if not words and family in ("repeat", "shuffle", "truncate"):
        return text
    match family:
        case "repeat":
            start, end = _span(len(words), rng, most=8)
            return " ".join([*words[:end], *(words[start:end] * rng.randint(1, 4)), *words[end:]])
        case "insert":
            foreign = rng.choice(material.responses).split() or ["…"]
            return " ".join([*words[:place], *[rng.choice(foreign)] * rng.randint(1, 4), *words[place:]])
        case "shuffle":
            start, end = _span(len(words), rng, most=len(words))
            middle = rng.sample(words[start:end], end - start)
            return " ".join([*words[:start], *middle, *words[end:]])
        case "wrap":
            return wrapped(text, rng.choice(WRAPPINGS[1:]), material.system)
        case "truncate":
            left = rng.randint(1, len(words))
            return " ".join(words[:left] if rng.random() < 0.5 else words[-left:])
        case "target":
            if not material.targets:
                return text
            return " ".join([*words[:place], *rng.choices(material.targets, k=rng.randint(1, 4)), *words[place:]])
        case "other":
            return rng.choice(material.responses)
    raise ValueError(f"family={family!r}: {', '.join(FAMILIES)}")


def _span(count: int, rng: random.Random, *, most: int) -> tuple[int, int]:
    start = rng.randrange(count)
    return start, min(count, start + rng.randint(1, most))


def marked(before: str, after: str, *, around: int = 8) -> str:
    """What an edit changed, as wdiff writes it: [-taken away-] {+put in+}, with `around` words beside each change."""
    old, new = before.split(), after.split()
    pieces: list[str] = []
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(changes):
        if kind == "equal":
            kept = old[a:b]
            head = kept[:around] if number > 0 else []
            tail = kept[-around:] if number < len(changes) - 1 else []
            pieces += kept if len(kept) <= len(head) + len(tail) + 1 else [*head, "…", *tail]
            continue
        pieces += [f"[-{' '.join(old[a:b])}-]"] if b > a else []
        pieces += [f"{{+{' '.join(new[c:d])}+}}"] if d > c else []
    return " ".join(pieces)


def cost(before: str, after: str) -> int:
    """The words put in, taken away or replaced, each 1, by the alignment that `marked` shows. A moved word is two."""
    changes = SequenceMatcher(None, before.split(), after.split(), autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in changes if kind != "equal")
