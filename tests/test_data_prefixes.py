"""The prefix data set: balanced, deduplicated, split by review, seeded, cached."""

import io
from collections import Counter

import pytest
from rich.console import Console

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.prefixes import build_prefixes, cut, load_prefixes, show, split
from rlhf_cli.data.reviews import SENTIMENTS, Review
from rlhf_cli.data.sources import load_reviews

COLUMNS = {"prefix", "class", "review", "words"}


def label_by_number(texts):
    """A labeler that tests can foresee: the number that the first word ends in decides."""
    return [SENTIMENTS[int(text.split()[0][1:]) % 3] for text in texts]


def numbered(count, *, passages=1):
    return [Review(f"r{i // passages}", f"w{i} " + " ".join(f"x{j}" for j in range(12)), None) for i in range(count)]


def build(reviews, *, train=30, test=9, seed=0, label=label_by_number, min_words=4, max_words=6):
    return build_prefixes(
        reviews, min_words=min_words, max_words=max_words, train=train, test=test, label=label, seed=seed
    )


def test_prefixes_are_the_first_words_of_their_reviews():
    reviews = {review.id: review for review in numbered(300)}
    rows = cut(list(reviews.values()), min_words=4, max_words=6, seed=0)
    for row in rows:
        assert reviews[row["review"]].text.startswith(row["prefix"] + " ")
        assert len(row["prefix"].split()) == row["words"]
    lengths = Counter(row["words"] for row in rows)
    assert set(lengths) == {4, 5, 6}
    assert min(lengths.values()) > 70  # of 300, uniform over three lengths


def test_a_length_depends_on_seed_and_review_alone():
    reviews = numbered(50)
    rows = {row["review"]: row for row in cut(reviews, min_words=4, max_words=6, seed=0)}
    fewer = cut(reviews[:10:-3], min_words=4, max_words=6, seed=0)
    assert all(rows[row["review"]] == row for row in fewer)
    assert cut(reviews, min_words=4, max_words=6, seed=1) != list(rows.values())


def test_a_review_needs_one_word_more_than_its_prefix():
    reviews = [Review("four", "a b c d", None), Review("five", "e f g h i", None)]
    for seed in range(8):
        (row,) = cut(reviews, min_words=4, max_words=6, seed=seed)
        assert (row["review"], row["prefix"], row["words"]) == ("five", "e f g h", 4)


def test_duplicates_go_whatever_their_case():
    reviews = [
        Review(str(i), text, None) for i, text in enumerate(("This film is bad", "THIS Film is good", "That film is"))
    ]
    rows = cut(reviews, min_words=3, max_words=3, seed=0)
    assert [row["prefix"] for row in rows] == ["This film is"]


@pytest.mark.parametrize("passages", [1, 5])
def test_balanced_and_no_review_nor_prefix_in_both(passages):
    splits = build(numbered(400, passages=passages))
    for name, number in (("train", 30), ("test", 9)):
        assert Counter(row["class"] for row in splits[name]) == dict.fromkeys(SENTIMENTS, number // 3)
        assert all(set(row) == COLUMNS for row in splits[name])
    for column in ("review", "prefix"):
        assert not {row[column] for row in splits["train"]} & {row[column] for row in splits["test"]}
    classes = [row["class"] for row in splits["train"]]
    assert classes != sorted(classes)  # shuffled, not class by class
    assert [row["class"] for row in splits["train"]] == label_by_number([row["prefix"] for row in splits["train"]])


def test_the_seed_decides():
    reviews = numbered(400)
    assert build(reviews) == build(reviews)
    first, other = build(reviews), build(reviews, seed=1)
    assert {row["review"] for row in first["train"]} != {row["review"] for row in other["train"]}


def test_all_can_be_used_when_there_is_just_enough():
    splits = build(numbered(39))
    assert len(splits["train"]) == 30
    assert len(splits["test"]) == 9


def test_a_scarce_class_is_not_lost_to_the_other_split():
    """Reviews of three passages, one a class: each test review takes its three, none is left over."""
    splits = build(numbered(39, passages=3))
    assert len({row["review"] for row in splits["test"]}) == 3
    assert len(splits["train"]) == 30


def test_too_few_of_a_class_says_how_many_and_what_to_do():
    with pytest.raises(UserError) as caught:
        build(numbered(20))
    message = str(caught.value)
    for part in (
        "7 negative, 7 neutral, 6 positive",
        "needed: 13 of each",
        "data.train=",
        "data.source=",
        "data.labeler=",
    ):
        assert part in message
    with pytest.raises(UserError, match="0 neutral, 0 positive"):
        build(numbered(60), label=lambda texts: ["negative"] * len(texts))
    with pytest.raises(UserError, match="0 negative, 0 neutral, 0 positive"):
        build([])


@pytest.mark.parametrize(
    ("train", "test", "key"), [(31, 9, "data.train=31"), (30, 10, "data.test=10"), (0, 9, "data.train=0")]
)
def test_counts_that_thirds_cannot_make(train, test, key):
    with pytest.raises(UserError, match=key):
        build(numbered(60), train=train, test=test)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,review\n" + "".join(f"{r.text},{r.id}\n" for r in numbered(90)))
    return path


class Labeler:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        return label_by_number(texts)


def load(source, cache, label, **changes):
    keys = {"min_words": 4, "max_words": 6, "train": 30, "test": 9, "seed": 0, "labeler": "numbers"} | changes
    return load_prefixes(str(source), label=label, cache_dir=cache, **keys)


def contents(dataset):
    return {name: rows.to_list() for name, rows in dataset.items()}


def test_the_second_time_it_comes_from_the_cache(source, tmp_path, capsys):
    label = Labeler()
    first = load(source, tmp_path / "cache", label)
    again = load(source, tmp_path / "cache", label)
    assert label.calls == 1
    assert contents(first) == contents(again)
    assert set(again["train"].column_names) == COLUMNS
    assert [path.name[0] for path in (tmp_path / "cache" / "prefixes").iterdir()] != ["."]  # nothing half-written
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""  # no progress bars


@pytest.mark.parametrize(
    "changes", [{"min_words": 5}, {"max_words": 7}, {"train": 33}, {"test": 6}, {"seed": 1}, {"labeler": "other"}]
)
def test_whatever_shapes_it_makes_a_new_one(source, tmp_path, changes):
    label = Labeler()
    load(source, tmp_path, label)
    load(source, tmp_path, label, **changes)
    assert label.calls == 2


def test_another_source_makes_a_new_one(source, tmp_path):
    label = Labeler()
    load(source, tmp_path, label)
    source.write_text(source.read_text() + "w90 x y z w v u t,r90\n")
    load(source, tmp_path, label)
    assert label.calls == 2


@pytest.mark.parametrize("torn", ["train/*.arrow", "train/state.json", "dataset_dict.json", "test/*.arrow"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_torn_entry_is_built_again(source, tmp_path, torn, gone):
    label = Labeler()
    whole = load(source, tmp_path / "cache", label)
    (file,) = (tmp_path / "cache" / "prefixes").glob(f"*/{torn}")
    raw = file.read_bytes()
    file.unlink()
    if not gone:
        file.write_bytes(raw[: len(raw) // 2])
    assert contents(load(source, tmp_path / "cache", label)) == contents(whole)
    assert label.calls == 2
    load(source, tmp_path / "cache", label)
    assert label.calls == 2


def test_a_failed_labeler_leaves_no_entry(source, tmp_path):
    def fails(texts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        load(source, tmp_path / "cache", fails)
    label = Labeler()
    load(source, tmp_path / "cache", label)
    assert label.calls == 1


def test_show_prints_counts_lengths_and_examples(tmp_path):
    source = tmp_path / "r.csv"
    rows = [f"[bold]w{i}[/] " + "x " * 12 for i in range(90)]
    source.write_text("text\n" + "".join(f"{row}\n" for row in rows))
    number = lambda texts: [SENTIMENTS[i % 3] for i in range(len(texts))]  # noqa: E731
    dataset = load(source, tmp_path / "cache", number)
    out = io.StringIO()
    show(dataset, Console(file=out, width=120))
    text = out.getvalue()
    for part in (*SENTIMENTS, "train", "test", "10", "30", "█", "[bold]w"):
        assert part in text
    assert all(str(n) in text for n in set(dataset["train"]["words"]))


def test_generated_reviews_make_a_balanced_set():
    from rlhf_cli.data.lexicon import vader_labels

    reviews = load_reviews("generated", limit=900)
    for low, high in ((4, 6), (10, 16)):
        splits = build(reviews, train=90, test=30, label=vader_labels, min_words=low, max_words=high)
        assert len(splits["train"]) == 90
        assert len({row["prefix"].lower() for rows in splits.values() for row in rows}) == 120


def test_split_prefers_the_order_it_is_given():
    rows = [{"review": str(i), "class": SENTIMENTS[i % 3]} for i in range(12)]
    splits = split(rows, train=6, test=3)
    assert [row["review"] for row in splits["test"]] == ["0", "1", "2"]
    assert [row["review"] for row in splits["train"]] == ["3", "4", "5", "6", "7", "8"]
