"""Every wrong input of scripts/bad_input.py is one message, what looks odd and is right is taken, no slow hub keeps
anybody waiting."""

import sys
import time
from pathlib import Path

import pytest

from rlhf_cli.config import hub
from rlhf_cli.miniatures.build import miniature

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import bad_input
import odd_input


def test_every_wrong_input_is_one_message(cache: Path, tmp_path: Path) -> None:
    names = ("qwen_instruct", "roberta_large")
    actor, classifier = (miniature(name, source="generated", cache_dir=cache) for name in names)
    wrong = {}
    for case in bad_input.cases(actor, classifier, tmp_path):
        good, code, message = bad_input.judge(case)
        if not good:
            wrong[case.what] = (code, message)
    assert not wrong
    assert not list(tmp_path.rglob("ran"))  # the program among the weights


def test_what_looks_odd_is_taken(cache: Path, tmp_path: Path) -> None:
    """Of scripts/odd_input.py what loads no model and needs no process of its own."""
    every = [case for case in odd_input.cases(tmp_path / "odd") if not case.environment]
    odd = [case for case in every if case.argv[0] in ("data", "sweep") or "--dry-run" in case.argv]
    wrong = {case.what: (code, said) for case in odd for good, code, said in [odd_input.judge(case)] if not good}
    assert len(odd) > 12
    assert not wrong


@pytest.mark.parametrize("behaviour", ["hangs", "fails", "drips"])
def test_a_hub_that_misbehaves_is_found_out_in_bounded_time(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with bad_input.hub(behaviour) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        begin = time.monotonic()
        why = hub.obstacle("a/b/resolve/main/config.json", timeout=1.0)
        assert why
        assert url in why
        assert hub.obstacle("another/model/resolve/main/config.json", timeout=1.0)  # remembered
        assert time.monotonic() - begin < 30  # it would be a minute for each


def test_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with bad_input.hub("babbles") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert hub.obstacle() is None
