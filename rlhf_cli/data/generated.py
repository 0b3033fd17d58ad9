"""Movie reviews out of a small grammar, for the miniatures: no download, no copied text.

A simulation, and no more: the reviews have labels, turns of mood and many different openings, but no author.
Left out on purpose: plots that make sense, and sentences that look at the one before.
"""

import re
from collections.abc import Sequence
from random import Random

from rlhf_cli.data.generated_words import BODIES, CLOSINGS, OPENINGS, SLOTS, TURNS
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment

MIN_WORDS, MAX_WORDS = 40, 120
TURN_RATE = 1 / 3
"""How many of the positive and negative reviews open in another mood than they end in."""

_LONGEST_SENTENCE = 21
_CAST = {"ACTOR": "person", "ACTRESS": "person", "DIRECTOR": "person", "WRITER": "person"}
_ONCE = {**_CAST, "TITLE": "title", "GENRE": "genre", "PLACE": "place", "JOB": "job", "HERO": "hero"}
_SLOT = re.compile(r"\{(\w+)\}")
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?:honest|hour|8\d|[aeiou](?!ni[oqv]|se[df]|ne\b))[\w]*)", re.IGNORECASE)
_SENTENCE_START = re.compile(r"^[a-z]")


def generate_reviews(count: int, seed: int) -> list[Review]:
    """`count` reviews of 40 to 120 words; the i-th depends on `seed` and i alone, never on `count`.

    Labels are drawn one in three each and say the final verdict; `sentence_labels` says the mood of every sentence.
    """
    return [_review(seed, index) for index in range(count)]


def _review(seed: int, index: int) -> Review:
    rng = Random(f"review {seed} {index}")
    label = rng.choice(SENTIMENTS)
    lines = _sentences(rng, _Writer(rng), label)
    sentences = tuple(text for _, text in lines)
    return Review(
        id=f"generated-{seed}-{index}",
        text=" ".join(sentences),
        label=label,
        sentences=sentences,
        sentence_labels=tuple(mood for mood, _ in lines),
    )


def _sentences(rng: Random, writer: "_Writer", label: Sentiment) -> list[tuple[Sentiment, str]]:
    """Opening, body and closing; a review that turns opens in another mood, stays in it for a while, then says so."""
    turns = label != "neutral" and rng.random() < TURN_RATE
    mood = _other(rng, label) if turns else label
    lines = [(mood, writer.write(OPENINGS[mood]))]
    if turns:
        lines += [(mood, writer.write_body(mood)) for _ in range(rng.choice((0, 1, 1, 2)))]
        lines.append((label, writer.write(TURNS[label])))
    closing = (label, writer.write(CLOSINGS[label]))
    target = rng.randint(MIN_WORDS, MAX_WORDS - _LONGEST_SENTENCE)
    while sum(len(text.split()) for _, text in [*lines, closing]) < target:
        aside = _aside(rng, label)
        lines.append((aside, writer.write_body(aside)))
    return [*lines, closing]


def _other(rng: Random, label: Sentiment) -> Sentiment:
    """The mood that a turning review opens in: three times in four the opposite, else neutral."""
    return "neutral" if rng.random() < 0.25 else _opposite(label)


def _aside(rng: Random, label: Sentiment) -> Sentiment:
    """The mood of one more sentence: mostly the review's own, at times a fact, seldom a concession."""
    draw = rng.random()
    if label == "neutral":
        return "neutral" if draw < 0.86 else rng.choice(("positive", "negative"))
    if draw < 0.68:
        return label
    return "neutral" if draw < 0.92 else _opposite(label)


def _opposite(label: Sentiment) -> Sentiment:
    return "negative" if label == "positive" else "positive"


class _Writer:
    """Fills templates for one review, whose film keeps its cast and whose sentences do not repeat."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.film: dict[str, str] = {}
        self.used: set[str] = set()

    def write(self, templates: Sequence[str]) -> str:
        fresh = [template for template in templates if template not in self.used] or templates
        template = self.rng.choice(fresh)
        self.used.add(template)
        text = _A_BEFORE_VOWEL.sub(r"\1n ", self._fill(template))
        return _SENTENCE_START.sub(lambda first: first[0].upper(), text)

    def write_body(self, mood: Sentiment) -> str:
        return self.write(BODIES[self.rng.choice(_ASPECTS)][mood])

    def _fill(self, template: str) -> str:
        drawn: set[str] = set()
        return _SLOT.sub(lambda slot: self._draw(slot[1], drawn), template)

    def _draw(self, slot: str, drawn: set[str]) -> str:
        """A filling of `slot`: nothing twice within one sentence, and nothing that the film holds for itself."""
        if slot in _ONCE:
            if slot not in self.film:
                self.film[slot] = self._pick(_ONCE[slot], set(self.film.values()))
            return self.film[slot]
        text = self._pick(slot, drawn.union(self.film.values()))
        drawn.add(text)
        return text

    def _pick(self, slot: str, taken: set[str]) -> str:
        for _ in range(8):
            text = self._fill(self.rng.choice(SLOTS[slot]))
            if text not in taken:
                break
        return text


_ASPECTS = (*BODIES, "plot", "acting", "overall", "overall")
