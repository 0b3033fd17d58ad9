"""Where reviews come from: every kind of source, and every way in which one can be wrong."""

import csv
import gzip
import json
import time
from pathlib import Path

import pytest

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.lexicon import vader_labels, vader_scores
from rlhf_cli.data.reviews import Review
from rlhf_cli.data.sources import clean, identity, load_reviews

MOVIE_REVIEWS = Path(__file__).parents[2] / "shared" / "data" / "movie_reviews"
ROWS = [
    {"text": "Loved<br /><br />it, all  of it!", "label": 1, "review": "a"},
    {"text": "A bore.", "label": 0, "review": "b"},
]
READ = [Review("a", "Loved it, all of it!", "positive"), Review("b", "A bore.", "negative")]


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_reviews(str(source))
    return str(caught.value)


def test_labels_that_a_table_wrote_as_floats_and_long_texts_are_taken(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text(f"text,label\n{'x' * 140_000},1.0\nfine,0.0\nso,\n", encoding="utf-8")
    assert [r.label for r in load_reviews(str(file))] == ["positive", "negative", None]


def test_clean_keeps_punctuation():
    assert clean(" One.<br /><br/>Two,\n\t three?<BR>") == "One. Two, three?<BR>"
    assert clean("<br />  ") == ""


def test_every_file_format_reads_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    plain = jsonl(tmp_path / "r.jsonl", ROWS)
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with (tmp_path / "r.csv").open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it
        writer = csv.DictWriter(file, ["text", "label", "review"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    for ending in ("jsonl", "jsonl.gz", "csv", "parquet"):
        assert load_reviews(str(tmp_path / f"r.{ending}")) == READ, ending


def test_csv_text_may_hold_line_breaks_of_every_kind(tmp_path):
    (tmp_path / "r.csv").write_text('text,label\n"one\ntwo",1\nthree\u2028four,0\n', encoding="utf-8")
    assert [r.text for r in load_reviews(str(tmp_path / "r.csv"))] == ["one two", "three four"]
    (tmp_path / "r.csv").write_text('text,label\n"well,\nnot bad,\n1 of 2",1\n', encoding="utf-8")
    assert [r.text for r in load_reviews(str(tmp_path / "r.csv"))] == ["well, not bad, 1 of 2"]


def test_labels_by_number_by_name_or_absent(tmp_path):
    given = [0, 1, "0", "Negative", "neutral", "POSITIVE", 1.0, float("nan"), None, ""]
    path = jsonl(tmp_path / "r.jsonl", [{"text": "t", "label": label} for label in given] + [{"text": "t"}])
    labels = [review.label for review in load_reviews(str(path))]
    assert labels[:7] == ["negative", "positive", "negative", "negative", "neutral", "positive", "positive"]
    assert labels[7:] == [None] * 4


def test_ids_come_from_the_review_column_else_from_file_and_row(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [{"text": "x", "review": 0}, {"text": "y", "review": 0}, {"text": "z"}])
    assert [review.id for review in load_reviews(str(path))] == ["0", "0", "r.jsonl:3"]


def test_folder_of_files_ignores_readmes(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROWS[:1])
    jsonl(tmp_path / "test.jsonl", ROWS[1:])
    before = identity(str(tmp_path))
    (tmp_path / "README.md").write_text("no reviews here")
    assert load_reviews(str(tmp_path)) == READ[::-1]  # by file name
    assert identity(str(tmp_path)) == before


def test_acl_imdb_folder(tmp_path):
    for split, side, text in (("train", "pos", "Fine."), ("train", "neg", "Bad."), ("test", "neg", "Worse.<br />")):
        folder = tmp_path / split / side
        folder.mkdir(parents=True)
        (folder / "7_1.txt").write_text(text)
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0_0.txt").write_text("never read")
    assert load_reviews(str(tmp_path)) == [
        Review("train/neg/7_1", "Bad.", "negative"),
        Review("train/pos/7_1", "Fine.", "positive"),
        Review("test/neg/7_1", "Worse.", "negative"),
    ]
    (tmp_path / "test" / "neg" / "8_1.txt").write_bytes(b"fine\nnot \xff fine")
    message = refused(tmp_path)
    assert "8_1.txt" in message
    assert "row 2: not UTF-8" in message


def test_limit_is_a_seeded_draw_that_keeps_passages_of_a_review_together(tmp_path):
    rows = [{"text": f"t{i}", "label": int(i >= 100), "review": i // 2} for i in range(200)]  # sorted by label
    path = str(jsonl(tmp_path / "r.jsonl", rows))
    some = load_reviews(path, seed=1, limit=40)
    assert some == load_reviews(path, seed=1, limit=40)
    assert some != load_reviews(path, seed=2, limit=40)
    assert len(some) == 40
    assert {review.label for review in some} == {"negative", "positive"}
    assert all(a.id == b.id for a, b in zip(some[::2], some[1::2], strict=True))
    assert len(load_reviews(path, limit=1000)) == 200


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("r.jsonl", b'{"body": "x", "stars": 3}\n', ["row 1", "no column 'text'", "body, stars"]),
        ("r.csv", b"body,stars\nx,3\n", ["row 2", "no column 'text'", "body, stars"]),
        ("r.jsonl", b"[1, 2]\n", ["row 1", "a list"]),
        ("r.jsonl", b'{"text": "x"}\n\n{"text": " <br /> "}\n', ["row 3", "empty"]),
        ("r.csv", b"label,text\n1\n", ["row 2", "empty"]),
        ("r.jsonl", b'{"text": 5}\n', ["row 1", "int, not a string"]),
        ("r.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', ["row 2", "not UTF-8"]),
        ("r.csv", b"text\nx\ncaf\xe9\n", ["row 3", "not UTF-8"]),
        ("r.jsonl", b'{"text": "x", "label": 7}\n', ["row 1", "label 7", "0, 1, negative, neutral, positive"]),
        ("r.jsonl", b'{"text": "x"}\n{"text": \n', ["row 2", "not JSON"]),
        (
            "r.csv",
            b'text,label\nfine,1\n"open,0\nbad,1\n',
            ["from line 3 on", "not CSV", "a quote inside a text is doubled"],
        ),
        ("r.csv", b'text,label\n"open,0\nbad,1\nworse",0\n', ["row 2 (line 2)", "a quote is missing or too many"]),
        (
            "r.csv",
            b'label,text\n1,"a\n0,bad\n,dull\n1,b"\n',
            ["row 2 (line 2)", "a quote is missing or too many"],
        ),
        ("r.csv", b'review,label,text\na,1,"open\nb,0,bad"\n', ["row 2 (line 2)", "a quote is missing or too many"]),
        ("r.csv", b"text,label\nlong, dull,0\n", ["row 2", "more cells than the header"]),
        ("r.jsonl", b'{"text": "half \\ud83d"}\n', ["row 1", "half a character"]),
        ("r.jsonl.gz", b"not gzip", ["r.jsonl.gz cannot be read"]),
        ("r.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:15], ["r.jsonl.gz cannot be read"]),
        ("r.parquet", b"not parquet", ["r.parquet cannot be read as parquet"]),
        ("r.txt", b"x", ["unknown format", ".jsonl.gz, .csv, .parquet"]),
        ("r.jsonl", b"", ["no review in it"]),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert all(part in message for part in parts), message


def test_a_source_that_is_not_there_says_what_is_allowed(tmp_path):
    message = refused("imbd")
    assert "data.source=imbd: no such file or folder" in message
    assert "imdb, generated" in message
    assert "neither aclImdb" in refused(tmp_path)


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty hub cache and no network, whatever the machine has."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "hub"


def test_imdb_without_network_says_what_to_do(no_hub):
    start = time.monotonic()
    message = refused("imdb")
    assert time.monotonic() - start < 30
    for part in ("stanfordnlp/imdb", "hf download --repo-type dataset stanfordnlp/imdb", "data.source=generated"):
        assert part in message
    assert "scale=mini" in message


def test_imdb_is_read_from_where_hf_download_leaves_it(no_hub):
    import pyarrow
    import pyarrow.parquet

    repo, commit = no_hub / "datasets--stanfordnlp--imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
    folder = repo / "snapshots" / commit / "plain_text"
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name, label in (("train", 0), ("test", 1), ("unsupervised", -1)):
        table = pyarrow.table({"text": [f"In {name}.<br />"], "label": [label]})
        pyarrow.parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    assert load_reviews("imdb") == [
        Review("train/0", "In train.", "negative"),
        Review("test/0", "In test.", "positive"),
    ]


def test_generated_reviews():
    reviews = load_reviews("generated", seed=3, limit=12)
    assert len(reviews) == 12
    assert reviews == load_reviews("generated", seed=3, limit=12)
    assert all(review.text == clean(review.text) for review in reviews)


def test_identity_changes_with_a_file(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", ROWS)
    before = identity(str(path))
    assert before == identity(str(path))
    jsonl(path, [*ROWS, ROWS[0]])
    assert identity(str(path)) != before
    assert len({identity("imdb"), identity("generated"), before}) == 3


@pytest.mark.skipif(not MOVIE_REVIEWS.is_dir(), reason="the real reviews are not on this machine")
def test_real_reviews():
    reviews = load_reviews(str(MOVIE_REVIEWS))
    assert len(reviews) > 10_000
    assert len({review.id for review in reviews}) < len(reviews) / 5  # passages share their review's id
    assert {review.label for review in reviews} == {"negative", "positive"}


def test_vader():
    texts = ["This is wonderful, I love it.", "It is a table.", "An awful, terrible mess."]
    assert vader_labels(texts) == ["positive", "neutral", "negative"]
    assert vader_scores(texts)[1] == 0
    assert vader_labels([]) == []
