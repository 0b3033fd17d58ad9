"""Properties that hold for any input: readers, builder, schema, estimators, losses, checkpoints."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.faults import validate
from rlhf_cli.config.schema import Config
from rlhf_cli.data.prefixes import build_prefixes, cut
from rlhf_cli.data.reviews import SENTIMENTS, Review
from rlhf_cli.data.sources import load_reviews
from rlhf_cli.rl.advantages import gae
from rlhf_cli.rl.losses import explained_variance
from rlhf_cli.runs.checkpoint import MANIFEST, _identity, is_whole
from rlhf_cli.tracking.jsonl import as_line, keep_until, read_jsonl
from rlhf_cli.tracking.text import harmless, printable

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """(what came of it, "") or (None, the message to the user); any other exception goes on."""
    try:
        return action(), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def config() -> dict:
    return plan("train", ["scale=mini"], multirun=False, config_dir=None).jobs[0].model_dump(by_alias=True)


@quick
@given(data=st.data())
def test_the_schema_accepts_or_says_why(config: dict, data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(config)))
    changed = dict(config)
    if isinstance(config[section], dict) and config[section]:
        key = data.draw(st.sampled_from(sorted(config[section])) | st.text(min_size=1, max_size=8))
        changed[section] = config[section] | {key: data.draw(anything)}
    else:
        changed[section] = data.draw(anything)
    accepted, message = attempt(lambda: validate(changed, Config))
    if accepted is None:
        assert section in message
        return
    again = accepted.model_dump(by_alias=True)
    assert again.keys() == config.keys()
    assert validate(again, Config) == accepted
    if isinstance(config[section], dict) and config[section]:  # an empty one is a table of any names
        assert again[section].keys() == config[section].keys()


@quick
@given(content=st.binary(max_size=200), ending=st.sampled_from([".jsonl", ".jsonl.gz", ".csv", ".parquet"]))
def test_any_bytes_are_reviews_or_a_message(tmp_path: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"r{ending}"
    file.write_bytes(content)
    reviews, message = attempt(lambda: load_reviews(str(file)))
    if reviews is None:
        assert file.name in message
    else:
        assert reviews
        assert all(review.text.strip() for review in reviews)


@quick
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "label", "review"]), anything), min_size=1, max_size=4))
def test_any_json_rows_are_reviews_or_a_message(tmp_path: Path, rows: list[dict]) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    reviews, message = attempt(lambda: load_reviews(str(file)))
    if reviews is None:
        assert "row" in message
    else:
        assert len(reviews) == len(rows)
        assert {review.label for review in reviews} <= {*SENTIMENTS, None}


words = st.lists(
    st.sampled_from(["a", "bad", "good", "film", "is", "the", "very", "wise", "old", "tale"]), max_size=12
).map(" ".join)


@quick
@given(texts=st.lists(words, max_size=40), low=st.integers(1, 4), more=st.integers(0, 4), seed=st.integers(0, 9))
def test_prefixes_are_starts_of_their_reviews(texts: list[str], low: int, more: int, seed: int) -> None:
    reviews = [Review(str(i), text, None) for i, text in enumerate(texts)]
    rows = cut(reviews, min_words=low, max_words=low + more, seed=seed)
    assert len({row["prefix"].lower() for row in rows}) == len(rows)
    for row in rows:
        assert texts[int(row["review"])].startswith(row["prefix"] + " ")
        assert low <= len(row["prefix"].split()) == row["words"] <= low + more


@quick
@given(seed=st.integers(0, 99), train=st.sampled_from([3, 6]), test=st.sampled_from([3, 6]), count=st.integers(0, 60))
def test_splits_are_balanced_and_share_no_review(seed: int, train: int, test: int, count: int) -> None:
    reviews = [Review(str(i // 2), f"w{i} b c d e f g h", None) for i in range(count)]

    def label(prefixes: list[str]) -> list:
        return [SENTIMENTS[int(prefix.split()[0][1:]) % 3] for prefix in prefixes]

    sizes = {"min_words": 2, "max_words": 4, "train": train, "test": test}
    splits, message = attempt(lambda: build_prefixes(reviews, **sizes, label=label, seed=seed))
    if splits is None:
        assert "too few prefixes" in message
        return
    for name, size in (("train", train), ("test", test)):
        classes = [row["class"] for row in splits[name]]
        assert [classes.count(c) for c in SENTIMENTS] == [size // 3] * 3
    assert not {row["review"] for row in splits["train"]} & {row["review"] for row in splits["test"]}


finite = st.floats(-1e6, 1e6, width=32)


@quick
@given(data=st.data(), rows=st.integers(1, 4), longest=st.integers(1, 6))
def test_gae_reads_nothing_outside_the_mask(data: st.DataObject, rows: int, longest: int) -> None:
    def table() -> torch.Tensor:
        return torch.tensor(
            data.draw(st.lists(st.lists(finite, min_size=longest, max_size=longest), min_size=rows, max_size=rows))
        )

    lengths = torch.tensor(data.draw(st.lists(st.integers(1, longest), min_size=rows, max_size=rows)))
    mask = torch.arange(longest) < lengths[:, None]
    rewards, values = table(), table()
    gamma, lam = data.draw(st.floats(0.01, 1)), data.draw(st.floats(0, 1))
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    nowhere = torch.full_like(rewards, float("nan"))
    again = gae(torch.where(mask, rewards, nowhere), torch.where(mask, values, nowhere), mask, gamma=gamma, lam=lam)
    for one, other in zip((advantages, returns), again, strict=True):
        assert torch.isfinite(one[mask]).all()
        torch.testing.assert_close(one[mask], other[mask])
    variance = explained_variance(values, returns, mask)
    assert float(variance) <= 1  # false for NaN, too
    outside = explained_variance(torch.where(mask, values, nowhere), torch.where(mask, returns, nowhere), mask)
    torch.testing.assert_close(outside, variance)


@quick
@given(place=st.floats(0, 0.999), bit=st.integers(0, 7), content=st.binary(min_size=1, max_size=300))
def test_any_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path, place: float, bit: int, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    (tmp_path / MANIFEST).write_text(json.dumps({"weights": _identity(tmp_path / "weights")}))
    assert is_whole(tmp_path)
    flipped = bytearray(content)
    flipped[int(place * len(content))] ^= 1 << bit
    (tmp_path / "weights").write_bytes(flipped)
    assert not is_whole(tmp_path)


@quick
@given(content=st.binary(max_size=80) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_read_without_a_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert is_whole(tmp_path) is False


@quick
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), anything, max_size=3), max_size=5), cut_at=st.integers(0, 400)
)
def test_a_record_cut_anywhere_loses_only_its_last_line(tmp_path: Path, rows: list[dict], cut_at: int) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [as_line(row | {"step": i}) for i, row in enumerate(rows)]
    file.write_bytes("".join(lines).encode()[:cut_at])
    whole = read_jsonl(file)
    assert [row["step"] for row in whole] == list(range(len(whole)))
    assert len("".join(lines[: len(whole)]).encode()) <= cut_at + 1
    keep_until(file, 1)
    assert [row["step"] for row in read_jsonl(file)] == list(range(min(2, len(whole))))


@quick
@given(text=st.text())
def test_no_text_moves_the_cursor(text: str) -> None:
    for clean in (printable(text), harmless(text)):
        assert not [c for c in clean if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
