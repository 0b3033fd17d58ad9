"""The prefix data set: cut, label, dedupe, balance, split, cache."""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment
from rlhf_cli.data.sources import identity, load_reviews

if TYPE_CHECKING:
    from datasets import DatasetDict
    from rich.console import Console

VERSION = 2
"""Raise it when the builder's result changes: old cache entries are then left alone."""

Label = Callable[[list[str]], list[Sentiment]]


def cut(
    reviews: list[Review], *, min_words: int, max_words: int, seed: int, unit: str = "word"
) -> list[dict[str, Any]]:
    """The first n words (or characters, by `unit`) of each review, n drawn from (seed, review id) so that some of the
    review is left over.

    Reviews of `min_words` or fewer are left out, and so is a prefix seen before (in any case).
    """
    rows, seen = [], set()
    for review in reviews:
        words = review.text.split() if unit == "word" else list(review.text)
        if len(words) <= min_words:
            continue
        count = random.Random(f"{seed}/{review.id}").randint(min_words, min(max_words, len(words) - 1))
        prefix = (" " if unit == "word" else "").join(words[:count]).strip()
        if prefix.lower() not in seen:
            seen.add(prefix.lower())
            rows.append({"prefix": prefix, "review": review.id, "words": count})
    return rows


def build_prefixes(
    reviews: list[Review],
    *,
    min_words: int,
    max_words: int,
    train: int,
    test: int,
    label: Label,
    seed: int,
    unit: str = "word",
) -> dict[str, list[dict[str, Any]]]:
    """{"train": rows, "test": rows}: 1:1:1 by class, no prefix twice, no review in both, shuffled."""
    for name, number in (("train", train), ("test", test)):
        if number < 3 or number % 3:
            raise UserError(f"data.{name}={number}: a third of it is of each class, so give 3 or a multiple of 3")
    rows = cut(reviews, min_words=min_words, max_words=max_words, seed=seed, unit=unit)
    _check_words(reviews, rows, min_words, unit)
    classes = label([row["prefix"] for row in rows])
    for row, name in zip(rows, classes, strict=True):
        row["class"] = name
    random.Random(f"{seed}/shuffle").shuffle(rows)
    splits = split(rows, train=train, test=test)
    if sum(map(len, splits.values())) < train + test:  # scarce: fewer reviews in the test split, more of each used
        splits = split(_review_by_review(rows), train=train, test=test)
        for name, chosen in splits.items():
            random.Random(f"{seed}/{name}").shuffle(chosen)
    _check_enough(rows, splits, train=train, test=test)
    return splits


def split(rows: list[dict[str, Any]], *, train: int, test: int) -> dict[str, list[dict[str, Any]]]:
    """Fill both splits in the order of `rows`; the first prefix of a review decides the side of all its prefixes."""
    splits: dict[str, list[dict[str, Any]]] = {"test": [], "train": []}
    room = {(name, c): n // 3 for name, n in (("test", test), ("train", train)) for c in SENTIMENTS}
    side: dict[str, str] = {}
    for row in rows:
        sides = [side[row["review"]]] if row["review"] in side else ["test", "train"]
        for name in sides:
            if room[name, row["class"]]:
                room[name, row["class"]] -= 1
                side[row["review"]] = name
                splits[name].append(row)
                break
    return splits


def _review_by_review(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = {row["review"]: i for i, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: first[row["review"]])


def _check_words(reviews: list[Review], rows: list[dict[str, Any]], min_words: int, unit: str) -> None:
    """Raise UserError for texts of a script without spaces, of which nothing could be cut."""
    solid = sum(len(review.text) > 4 * min_words >= 4 * len(review.text.split()) for review in reviews)
    if unit == "word" and solid > len(reviews) / 2 and len(rows) < len(reviews) / 2:
        raise UserError(
            f"{solid} of {len(reviews)} texts have {min_words} words or fewer and are long: words are split at "
            "white space, which their script has not. Cut by characters: data.unit=character (data.min_words and "
            "data.max_words count them then)"
        )


def _check_enough(
    rows: list[dict[str, Any]], splits: dict[str, list[dict[str, Any]]], *, train: int, test: int
) -> None:
    if len(splits["train"]) == train and len(splits["test"]) == test:
        return
    found = Counter(row["class"] for row in rows)
    usable = Counter(row["class"] for chosen in splits.values() for row in chosen)
    needed = (train + test) // 3
    listed = ", ".join(f"{found[c]} {c}" for c in SENTIMENTS)
    short = " and ".join(f"{usable[c]} {c}" for c in SENTIMENTS if usable[c] < needed)
    raise UserError(
        f"too few prefixes of a class: there are {listed}; needed: {needed} of each (a third of train + test).\n"
        f"  With no review in both splits, only {short} can be used.\n"
        "  Ask for fewer (data.train=, data.test=), or take more reviews (data.source=), "
        "or another labeler (data.labeler=roberta_large|roberta_base|vader; vader knows English words only)"
    )


def load_prefixes(
    source: str,
    *,
    min_words: int,
    max_words: int,
    train: int,
    test: int,
    seed: int,
    labeler: str,
    label: Label,
    cache_dir: Path,
    unit: str = "word",
) -> "DatasetDict":
    """A `datasets.DatasetDict`, cached under a fingerprint of all that shaped it. `label` runs on a miss only."""
    shaped_by = [VERSION, identity(source), min_words, max_words, train, test, seed, labeler]
    shaped_by += [unit] if unit != "word" else []
    fingerprint = hashlib.sha256(json.dumps(shaped_by).encode()).hexdigest()[:16]
    folder = cache_dir / "prefixes" / fingerprint
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    try:
        return DatasetDict.load_from_disk(str(folder))
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)  # not there, or torn
    splits = build_prefixes(
        load_reviews(source, seed=0),
        min_words=min_words,
        max_words=max_words,
        unit=unit,
        train=train,
        test=test,
        label=label,
        seed=seed,
    )
    dataset = DatasetDict({name: Dataset.from_list(splits[name]) for name in ("train", "test")})
    temporary = folder.with_name(f".tmp_{fingerprint}_{random.SystemRandom().randrange(10**9)}")
    dataset.save_to_disk(str(temporary))
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(temporary, ignore_errors=True)
    return dataset


def show(dataset: "DatasetDict", console: "Console") -> None:
    """Counts a class and a split, a histogram of lengths, examples."""
    from rich.table import Table
    from rich.text import Text

    counts = Table("split", *SENTIMENTS, "all", title="prefixes")
    for name, rows in dataset.items():
        per_class = [sum(c == s for c in rows["class"]) for s in SENTIMENTS]
        counts.add_row(name, *map(str, per_class), str(len(rows)))
    console.print(counts)
    lengths = [n for rows in dataset.values() for n in rows["words"]]
    histogram = Table("words", "prefixes", "", title="lengths")
    for words in sorted(set(lengths)):
        number = lengths.count(words)
        histogram.add_row(str(words), str(number), "█" * round(40 * number / len(lengths)))
    console.print(histogram)
    examples = Table("class", "prefix", title="examples")
    for sentiment in SENTIMENTS:
        chosen = [
            p for p, c in zip(dataset["train"]["prefix"], dataset["train"]["class"], strict=True) if c == sentiment
        ]
        for prefix in chosen[:4]:
            examples.add_row(sentiment, Text("".join(filter(str.isprintable, prefix))))
    console.print(examples)
