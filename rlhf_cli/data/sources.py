"""Where reviews come from: the hub, a file, a folder, or the project's own generator."""

import csv
import gzip
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment

GENERATED_COUNT = 9000
ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


def clean(text: str) -> str:
    """`<br />` and runs of white space become one space; punctuation stays."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def load_reviews(source: str, *, seed: int = 0, limit: int | None = None) -> list[Review]:
    """Every review of a source: `imdb`, `generated`, a file (.jsonl, .jsonl.gz, .csv, .parquet) or a folder."""
    if source == "generated":
        from rlhf_cli.data.generated import generate_reviews

        return generate_reviews(limit or GENERATED_COUNT, seed)
    if source == "imdb":
        reviews = _imdb()
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            reviews = list(_folder(path))
        elif path.is_file():
            reviews = list(_file(path))
        else:
            raise UserError(
                f"data.source={source}: no such file or folder "
                f"(allowed: imdb, generated, a {', '.join(ENDINGS)} file, or a folder of them or of aclImdb)"
            )
    if not reviews:
        raise UserError(f"data.source={source}: there is no review in it")
    return reviews[:limit]


def identity(source: str) -> str:
    """What a cache entry hangs on: the name of a source, and for files their sizes and times of change."""
    path = Path(source).expanduser()
    if source in ("imdb", "generated") or not path.exists():
        return source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return json.dumps([[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in files])


def _folder(path: Path) -> Iterator[Review]:
    if any((path / split / "pos").is_dir() for split in ("train", "test")):
        yield from _acl_imdb(path)
        return
    files = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS))
    if not files:
        raise UserError(f"data.source={path}: neither aclImdb (train|test/pos|neg/*.txt) nor any {', '.join(ENDINGS)}")
    for file in files:
        yield from _file(file)


def _acl_imdb(path: Path) -> Iterator[Review]:
    labels: tuple[tuple[str, Sentiment], ...] = (("neg", "negative"), ("pos", "positive"))
    for split in ("train", "test"):
        for name, label in labels:
            for file in sorted((path / split / name).glob("*.txt")):
                text = clean(_decoded(file.read_bytes(), str(file)))
                if text:
                    yield Review(f"{split}/{name}/{file.stem}", text, label)


def _file(path: Path) -> Iterator[Review]:
    rows = _rows(path)
    for number, row in rows:
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or "text" not in row:
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where}: there is no column 'text' (it has: {columns}); needed: text, and label if known")
        text = row["text"]
        if not isinstance(text, str) or not clean(text):
            raise UserError(f"{where}: the text is empty")
        review = str(row.get("review") or f"{path.name}:{number}")
        yield Review(review, clean(text), _label(row.get("label"), where))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.name.endswith(".parquet"):
        import pyarrow.parquet

        try:
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        except Exception as error:
            raise UserError(f"{path} cannot be read as parquet: {error}") from None
        return
    if not path.name.endswith(ENDINGS):
        raise UserError(f"data.source={path}: unknown format (allowed: {', '.join(ENDINGS)})")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    text = _decoded(raw, str(path))
    if path.name.endswith(".csv"):
        yield from enumerate(csv.DictReader(text.splitlines(keepends=True)), 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, row {number}: not JSON ({error})") from None


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{where}, row {row}: not UTF-8 (save the file as UTF-8)") from None


def _label(value: Any, where: str) -> Sentiment | None:
    if value is None or value == "":
        return None
    names: dict[str, Sentiment] = {name: name for name in SENTIMENTS} | {"0": "negative", "1": "positive"}
    if str(value).lower() not in names:
        raise UserError(f"{where}: label {value!r} is unknown (allowed: 0, 1, {', '.join(SENTIMENTS)}, or none)")
    return names[str(value).lower()]


def _imdb() -> list[Review]:
    from datasets import load_dataset

    if not _reachable():
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
    try:
        splits = {name: load_dataset("stanfordnlp/imdb", split=name) for name in ("train", "test")}
    except Exception as error:
        raise UserError(
            "stanfordnlp/imdb is not on this machine and could not be fetched "
            f"({type(error).__name__}).\n"
            "  Fetch it where there is a network: hf download --repo-type dataset stanfordnlp/imdb\n"
            "  or give your own reviews: data.source=<file or folder>\n"
            "  or use the generated ones: data.source=generated (or scale=mini)"
        ) from None
    return [
        Review(f"{name}/{i}", clean(row["text"]), _label(row["label"], f"imdb {name} {i}"))
        for name, rows in splits.items()
        for i, row in enumerate(rows)
    ]


def _reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=3):
            return True
    except OSError:
        return False
