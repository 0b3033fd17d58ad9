"""Where reviews come from: the hub, a file, a folder, or the project's own generator."""

import csv
import gzip
import hashlib
import io
import json
import random
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config import hub
from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment

VERSION = 2
"""Raise it when a source's reviews change: what was made of the old ones is then made anew."""

GENERATED_COUNT = 9000
IMDB = "stanfordnlp/imdb"
ACL_IMDB: dict[tuple[str, str], Sentiment] = {
    ("train", "neg"): "negative",
    ("train", "pos"): "positive",
    ("test", "neg"): "negative",
    ("test", "pos"): "positive",
}
ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate without its other half: JSON can write it, UTF-8 cannot."""


def clean(text: str) -> str:
    """`<br />` and runs of white space become one space; punctuation stays."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def load_reviews(source: str, *, seed: int = 0, limit: int | None = None) -> list[Review]:
    """Every review of a source: `imdb`, `generated`, a file (.jsonl, .jsonl.gz, .csv, .parquet) or a folder.

    `limit` keeps at most so many, in an order drawn from `seed`. Raises UserError where the source cannot be read.
    """
    if source == "generated":
        from rlhf_cli.data.generated import generate_reviews

        return generate_reviews(GENERATED_COUNT if limit is None else limit, seed)
    reviews = _imdb() if source == "imdb" else list(_local(source))
    if not reviews:
        raise UserError(f"data.source={source}: there is no review in it")
    return reviews if limit is None else _some(reviews, limit, seed)


def identity(source: str) -> str:
    """What a cache entry hangs on: for files their sizes and times of change, for generated reviews the generator."""
    path = Path(source).expanduser()
    if source == "generated":
        code = b"".join(
            Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("generated", "generated_words")
        )
        return json.dumps([VERSION, source, GENERATED_COUNT, hashlib.sha256(code).hexdigest()])
    if source == "imdb" or not path.exists():
        return json.dumps([VERSION, source])
    if not path.is_file() and not path.is_dir():
        raise UserError(f"data.source={source} is neither a file nor a folder")
    files = [path] if path.is_file() else _read_in(path)
    return json.dumps([VERSION, *([str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files)])


def _some(reviews: list[Review], limit: int, seed: int) -> list[Review]:
    """At most `limit`, not the first ones: sources are often sorted by label. Passages of a review stay neighbours."""
    passages: dict[str, list[Review]] = {}
    for review in reviews:
        passages.setdefault(review.id, []).append(review)
    order = list(passages)
    random.Random(f"{seed}/some").shuffle(order)
    return [review for name in order for review in passages[name]][:limit]


def _local(source: str) -> Iterator[Review]:
    path = Path(source).expanduser()
    if path.is_file():
        yield from _file(path)
    elif not path.is_dir():
        raise UserError(
            f"data.source={source}: no such file or folder "
            f"(allowed: imdb, generated, a {', '.join(ENDINGS)} file, or a folder of them or of aclImdb)"
        )
    elif _is_acl_imdb(path):
        yield from _acl_imdb(path)
    else:
        files = _read_in(path)
        if not files:
            allowed = ", ".join(ENDINGS)
            raise UserError(f"data.source={source}: neither aclImdb (train|test/pos|neg/*.txt) nor any {allowed}")
        for file in files:
            yield from _file(file)


def _read_in(folder: Path) -> list[Path]:
    """The files of a folder that reviews are read from; a README is none."""
    if _is_acl_imdb(folder):
        return [file for split, side in ACL_IMDB for file in sorted((folder / split / side).glob("*.txt"))]
    return sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))


def _is_acl_imdb(folder: Path) -> bool:
    return any((folder / split / side).is_dir() for split, side in ACL_IMDB)


def _acl_imdb(folder: Path) -> Iterator[Review]:
    for file in _read_in(folder):
        split, side = file.parts[-3:-1]
        text = clean(_decoded(_bytes(file), file))
        if not text:
            raise UserError(f"{file}: the text is empty")
        yield Review(f"{split}/{side}/{file.stem}", text, ACL_IMDB[split, side])


def _file(path: Path) -> Iterator[Review]:
    for number, row in _rows(path):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or "text" not in row:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else f"none, but a {type(row).__name__}"
            raise UserError(
                f"{where}: there is no column 'text' (there are: {columns}); needed: text, and label if known"
            )
        text = row["text"]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: the text is a {type(text).__name__}, not a string")
        if not text or not clean(text):
            raise UserError(f"{where}: the text is empty")
        if half := HALF_A_CHARACTER.search(text):
            raise UserError(
                f"{where}: the text holds half a character ({half[0]!r}): write both halves, or leave it out"
            )
        name = row.get("review")
        yield Review(
            f"{path.name}:{number}" if name in (None, "") else str(name), clean(text), _label(row.get("label"), where)
        )


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Each row and its number: a line's number in text files (a CSV's header is row 1), else counted from 1."""
    if not path.name.endswith(ENDINGS):
        raise UserError(f"data.source={path}: unknown format (allowed: {', '.join(ENDINGS)})")
    if path.name.endswith(".parquet"):
        yield from enumerate(_parquet(path), 1)
        return
    text = _decoded(_bytes(path), path)
    if path.name.endswith(".csv"):
        yield from _csv(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, row {number}: not JSON ({error})") from None


def _csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # its own limit is a review of 131,072 characters
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for number, row in enumerate(reader, 2):
            _one_row(row, f"{path}, row {number} (line {line + 1})")
            line = reader.line_num
            yield number, row
    except csv.Error as error:
        raise UserError(
            f"{path}, from line {line + 1} on: not CSV ({error}; a quote inside a text is doubled)"
        ) from None


def _one_row(row: dict[Any, Any], where: str) -> None:
    """Raise UserError where a row has more cells than the header, or where a stray quote has swallowed lines: whole
    rows stand in a text then."""
    if None in row:
        raise UserError(f"{where}: more cells than the header has names (a text with a comma stands in quotes)")
    if "label" in row and len(row) > 1 and any(_holds_rows(cell, list(row)) for cell in row.values() if cell):
        raise UserError(f"{where}: a text holds line ends and whole rows: a quote is missing or too many there")


def _holds_rows(cell: str, columns: list[str]) -> bool:
    """Whether each line of a cell, but the one that a quote cut, has a label where the header has it; one of them not
    an empty one. A text that is written in lines has none."""
    place, lines = columns.index("label"), cell.split("\n")
    from_left = [line.split(",")[place] if line.count(",") >= place else "?" for line in lines[1:]]
    back = len(columns) - place
    from_right = [line.split(",")[-back] if line.count(",") >= back - 1 else "?" for line in lines[:-1]]
    known = ("0", "1", *SENTIMENTS)
    for found in (from_left, from_right):
        labels = [word.strip('" \r').lower().removesuffix(".0") for word in found]
        if any(label in known for label in labels) and all(label in (*known, "") for label in labels):
            return True
    return False


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.name.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")  # spreadsheets put a byte-order mark before the header
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, row {row}: not UTF-8 (save the file as UTF-8)") from None


def _label(value: Any, where: str) -> Sentiment | None:
    if value is None or value == "" or value != value:  # pandas writes a missing label as NaN
        return None
    names: dict[str, Sentiment] = {name: name for name in SENTIMENTS} | {"0": "negative", "1": "positive"}
    name = str(value).strip().lower()
    name = name.removesuffix(".0")  # and the others of that column as 0.0 and 1.0
    if name not in names:
        raise UserError(f"{where}: label {value!r} is unknown (allowed: 0, 1, {', '.join(SENTIMENTS)}, or none)")
    return names[name]


def _imdb() -> list[Review]:
    splits = _imdb_fetched_before() or _imdb_from_hub()
    return [
        Review(f"{name}/{i}", clean(row["text"]), _label(row["label"], f"imdb {name} {i}"))
        for name, rows in splits.items()
        for i, row in enumerate(rows)
    ]


def _imdb_fetched_before() -> dict[str, Any] | None:
    """What `hf download` left in the hub's cache: `load_dataset` does not look there without a network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(IMDB, repo_type="dataset", local_files_only=True))
    except Exception:
        return None
    files = {name: sorted(folder.rglob(f"{name}-*.parquet")) for name in ("train", "test")}
    if not all(files.values()):
        return None
    return {name: [row for path in paths for row in _parquet(path)] for name, paths in files.items()}


def _imdb_from_hub() -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = (
        offline or hub.obstacle(f"datasets/{IMDB}/resolve/main/README.md") is not None
    )  # then a copy in its own cache will do
    try:
        return {name: datasets.load_dataset(IMDB, split=name) for name in ("train", "test")}
    except Exception as error:
        raise UserError(
            f"{IMDB} is not on this machine and could not be fetched ({type(error).__name__}).\n"
            f"  Fetch it where there is a network: hf download --repo-type dataset {IMDB}\n"
            "  or give your own reviews: data.source=<file or folder>\n"
            "  or use the generated ones: data.source=generated (or scale=mini)"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
