"""The generated reviews: repeatable, balanced, and with many different openings of each mood."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from rlhf_cli.data.generated import MAX_WORDS, MIN_WORDS, generate_reviews
from rlhf_cli.data.generated_words import BODIES, CLOSINGS, OPENINGS, SLOTS, TURNS
from rlhf_cli.data.reviews import SENTIMENTS, Review

PRAISE = {w for slot in ("pos", "loved", "gem", "virtue", "lively") for entry in SLOTS[slot] for w in entry.split()}
PRAISE |= {"best", "favorite", "bravo", "charmed", "love", "liked", "laughed"}
BLAME = {w for slot in ("neg", "hated", "rubbish", "deadly") for entry in SLOTS[slot] for w in entry.split()}
BLAME |= {w for entry in SLOTS["vice"] + SLOTS["junk"] for w in entry.split()} - {"of", "piece", "train"}
BLAME |= {"worst", "shame", "avoid", "bored", "hate", "suffered", "skip"}
CUES = {"positive": PRAISE, "negative": BLAME}


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    return generate_reviews(9000, seed=0)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_the_same_seed_gives_the_same_reviews_whatever_the_count(reviews: list[Review]) -> None:
    assert generate_reviews(50, seed=0) == reviews[:50]
    assert generate_reviews(0, seed=0) == []
    assert not {r.text for r in generate_reviews(50, seed=1)} & {r.text for r in reviews}


def test_ids_and_texts_are_unique(reviews: list[Review]) -> None:
    assert len({r.id for r in reviews}) == len(reviews)
    assert len({r.text for r in reviews}) == len(reviews)


def test_word_bounds(reviews: list[Review]) -> None:
    lengths = [len(r.text.split()) for r in reviews]
    assert min(lengths) >= MIN_WORDS
    assert max(lengths) <= MAX_WORDS
    assert len(set(lengths)) > 60


def test_labels_are_about_one_in_three(reviews: list[Review]) -> None:
    counts = Counter(r.label for r in reviews)
    assert all(abs(counts[s] / len(reviews) - 1 / 3) < 0.02 for s in SENTIMENTS)


def test_sentences_make_up_the_text_and_carry_labels(reviews: list[Review]) -> None:
    for review in reviews:
        assert " ".join(review.sentences) == review.text
        assert len(review.sentences) == len(review.sentence_labels)
        assert review.sentence_labels[-1] == review.label
        assert all(a != b for a, b in pairwise(review.sentences))


def test_a_third_of_the_reviews_with_a_verdict_open_in_another_mood(reviews: list[Review]) -> None:
    judged = [r for r in reviews if r.label != "neutral"]
    turned = [r for r in judged if r.sentence_labels[0] != r.label]
    assert 0.28 < len(turned) / len(judged) < 0.39
    assert {(r.sentence_labels[0], r.label) for r in turned} == {
        ("negative", "positive"),
        ("neutral", "positive"),
        ("positive", "negative"),
        ("neutral", "negative"),
    }
    assert all(re.search(r"\b(But|However|Still|Sadly|Yet|Then|And yet)\b", r.text) for r in turned)


@pytest.mark.parametrize("mood", SENTIMENTS)
def test_openings_are_many_and_show_their_mood_early(reviews: list[Review], mood: str) -> None:
    """Unique openings, one a review: those of 4 to 6 words with a word of the mood in them, and those of 10 to 16."""
    short, long = set(), set()
    for index, review in enumerate(r for r in reviews if r.sentence_labels[0] == mood):
        words = review.text.split()
        opening = " ".join(words[: 4 + index % 3])
        seen = set(_tokens(opening))
        if seen & CUES[mood] if mood != "neutral" else not seen & (PRAISE | BLAME) or "neither" in seen:
            short.add(opening)
        long.add(" ".join(words[: 10 + index % 7]))
    assert len(short) >= 2000
    assert len(long) >= 2400


def test_vocabulary_size(reviews: list[Review]) -> None:
    assert 900 <= len({w for r in reviews for w in _tokens(r.text)}) <= 1500


def test_articles_capitals_and_punctuation(reviews: list[Review]) -> None:
    text = " ".join(r.text for r in reviews)
    assert not re.search(r"\b[Aa] (?:[aeioAEIO]|8\d\b)", text)
    assert not re.search(r"\b[Aa]n [^aeiouAEIOU8h]", text)
    assert not re.search(r"[^A-Za-z0-9 .,!?']|  ", text)
    assert all(re.match(r"[A-Z].*[.!?]$", s) for r in reviews for s in r.sentences)


def test_every_slot_is_known_and_used() -> None:
    blocks = [OPENINGS, TURNS, CLOSINGS, *BODIES.values()]
    texts = [t for block in blocks for templates in block.values() for t in templates]
    texts += [t for entries in SLOTS.values() for t in entries]
    named = {name for text in texts for name in re.findall(r"\{(\w+)\}", text)}
    cast = {"ACTOR": "person", "ACTRESS": "person", "DIRECTOR": "person", "WRITER": "person"}
    assert {cast.get(name, name.lower()) for name in named} == set(SLOTS)
