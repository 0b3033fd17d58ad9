"""The prefix data set: cut, label, dedupe, balance, split, cache."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment
from rlhf_cli.data.sources import identity, load_reviews

VERSION = 1
"""Raise it when the builder's result changes: old cache entries are then left alone."""

Label = Callable[[list[str]], list[Sentiment]]


def cut(reviews: list[Review], *, min_words: int, max_words: int, seed: int) -> list[dict[str, Any]]:
    """The first n words of each review, n drawn from (seed, review id); too short reviews are left out."""
    rows, seen = [], set()
    for review in reviews:
        words = review.text.split()
        count = random.Random(f"{seed}/{review.id}").randint(min_words, max_words)
        prefix = " ".join(words[:count])
        if len(words) > count and prefix.lower() not in seen:
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
) -> dict[str, list[dict[str, Any]]]:
    """{"train": rows, "test": rows}: 1:1:1 by class, no prefix twice, no review in both."""
    rows = cut(reviews, min_words=min_words, max_words=max_words, seed=seed)
    classes = label([row["prefix"] for row in rows])
    for row, name in zip(rows, classes, strict=True):
        row["class"] = name
    random.Random(f"{seed}/shuffle").shuffle(rows)
    splits: dict[str, list[dict[str, Any]]] = {"test": [], "train": []}
    side: dict[str, str] = {}
    room = {(split, c): n // 3 for split, n in (("test", test), ("train", train)) for c in SENTIMENTS}
    for row in rows:  # a review's first prefix decides the side of all its prefixes
        sides = [side[row["review"]]] if row["review"] in side else ["test", "train"]
        for split in sides:
            if room[split, row["class"]]:
                room[split, row["class"]] -= 1
                side[row["review"]] = split
                splits[split].append(row)
                break
    if any(room.values()):
        counts = {c: sum(row["class"] == c for row in rows) for c in SENTIMENTS}
        listed = ", ".join(f"{n} {c}" for c, n in counts.items())
        raise UserError(
            f"too few prefixes of a class: {listed}; needed {(train + test) // 3} of each.\n"
            "  Ask for fewer (data.train=, data.test=), or take more reviews (data.source=), "
            "or another labeler (data.labeler=roberta_large|roberta_base|vader)"
        )
    return splits


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
) -> Any:
    """A `datasets.DatasetDict`, cached under a fingerprint of all that shaped it. `label` runs on a miss only."""
    shaped_by = [VERSION, identity(source), min_words, max_words, train, test, seed, labeler]
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


def show(dataset: Any, console: Any) -> None:
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
            examples.add_row(sentiment, Text(prefix))
    console.print(examples)
