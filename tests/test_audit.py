"""rlhf audit: the edits, the search against rewards whose holes are known, and the command."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.evaluation.audit import (
    Found,
    Gains,
    by_cost,
    by_family,
    cheapest,
    robustness,
    search,
    target_words,
    transfer,
)
from rlhf_cli.evaluation.edits import FAMILIES, Material, cost, edited, marked
from rlhf_cli.rewards.scorer import Texts

RESPONSES = ["It was bad and dull .", "A film of some length", "We liked all of it", "It is bad bad bad"]
TEXTS = Texts([""] * 4, [""] * 4, RESPONSES, [[]] * 4)
MATERIAL = Material(RESPONSES, ["bad"], "Be helpful.")


def counts_bad(texts: Texts) -> torch.Tensor:
    """Can be bought with a word."""
    return torch.tensor([float(r.split().count("bad")) for r in texts.responses])


def starts(texts: Texts) -> torch.Tensor:
    """Gold: what the first two words say."""
    return torch.tensor([float(r.startswith("It was")) for r in texts.responses])


def found(text: int, words: int, reward: float, gold: float, *path: str) -> Found:
    return Found(text, path or ("insert",), "a", "b", words, reward, gold)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_changes_a_text_in_its_way(family: str) -> None:
    rng, before = random.Random(0), RESPONSES[0]
    made = [edited(family, before, MATERIAL, rng) for _ in range(20)]
    assert any(after != before for after in made)
    old = sorted(before.split())
    for after in made:
        new = sorted(after.split())
        match family:
            case "shuffle":
                assert new == old
            case "truncate":
                assert before.startswith(after) or before.endswith(after)
            case "other":
                assert after in RESPONSES
            case "wrap":
                assert after.endswith(before)
            case _:
                assert len(new) > len(old)
    assert edited(family, "", MATERIAL, rng) is not None
    with pytest.raises(ValueError, match="repeat, insert"):
        edited("nothing", before, MATERIAL, rng)


def test_cost_by_hand() -> None:
    assert cost("a b c", "a b c") == 0
    assert cost("a b c", "c b a") == 4  # one of them stays, and two are moved
    assert cost("a b c", "a d c d") == 2  # b is replaced, and d is put in
    assert cost("a b c d", "a b") == cost("a b", "x a b y") == 2


def test_a_change_is_marked_with_the_words_beside_it() -> None:
    assert marked("a b c d e f", "a b x y c d e f", around=1) == "a b {+x y+} c …"
    assert marked("a b c", "x b", around=2) == "[-a-] {+x+} b [-c-]"
    assert marked("a b c d e f g", "x a b c d e f g y", around=2) == "{+x+} a b … f g {+y+}"


def test_what_gold_confirms_is_earned_and_its_fall_adds_nothing() -> None:
    assert found(0, 1, 2.0, 0.5).unearned == 1.5
    assert found(0, 1, 2.0, -3.0).unearned == 2.0


def test_the_cheapest_and_the_families_by_hand() -> None:
    tried = [
        found(0, 5, 3.0, 0.0),
        found(0, 2, 1.2, 0.0, "repeat"),
        found(1, 1, 1.5, 1.0),
        found(2, 1, 1.1, 0.0, "insert", "repeat"),
    ]
    exploits = cheapest(tried, margin=1.0)
    assert [(e.text, e.cost) for e in exploits] == [(2, 1), (0, 2)]
    assert by_family(tried, margin=1.0, count=4) == {
        "insert": {"exploited": 0.25, "unearned": pytest.approx((3.0 + 0.5) / 4)},
        "repeat": {"exploited": 0.25, "unearned": pytest.approx(1.2 / 4)},
    }
    assert by_cost(exploits, count=4) == {1: 0.25, 2: 0.5, 5: 0.5, 10: 0.5, 20: 0.5, 50: 0.5}
    share, low, high = robustness(exploits, count=4)
    assert share == 0.5
    assert 0 <= low < share < high <= 1
    assert robustness([], count=4) == (1.0, 1.0, 1.0)


def test_a_hole_is_found_and_a_sound_reward_has_none() -> None:
    bought, gold = Gains.of(counts_bad, TEXTS), Gains.of(starts, TEXTS)
    assert target_words(counts_bad, TEXTS)[0] == "bad"
    tried = search(TEXTS, bought, gold, MATERIAL, FAMILIES, rounds=2, tries=3)
    exploits = cheapest(tried, margin=0.8)
    assert {e.text for e in exploits} == {0, 1, 2, 3}
    assert exploits[0].cost == 1  # a word, worth 1 / 1.22 standard deviations
    assert tried == search(TEXTS, bought, gold, MATERIAL, FAMILIES, rounds=2, tries=3)  # by its seed
    sound = search(TEXTS, gold, gold, MATERIAL, FAMILIES, rounds=2, tries=3)
    assert sound
    assert cheapest(sound, margin=1e-6) == []
    assert transfer(exploits, TEXTS, {"same": bought, "sound": gold}, margin=0.8) == {"same": 1.0, "sound": 0.0}


def test_the_command(cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [option for option in SMALL if not option.startswith("steps")]
    small += ["reward=vader", "gold=roberta_large", "audit.texts=6", "audit.tries=2", "audit.rounds=1"]
    assert dispatch(["audit", *small, "audit.transfer=[roberta_base]", f"hydra.run.dir={tmp_path / 'a'}"]) == 0
    kept = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert kept["responses"] == 6
    assert 0 <= kept["robustness"]["low"] <= kept["robustness"]["share"] <= kept["robustness"]["high"] <= 1
    assert set(kept["families"]) <= set(FAMILIES)
    assert "robustness" in capsys.readouterr().out
    fails = ["audit.margin=0.01", "audit.fail_below=1", "audit.transfer=[]"]
    assert dispatch(["audit", *small, *fails, f"hydra.run.dir={tmp_path / 'b'}"]) == 1
    assert "below audit.fail_below=1" in capsys.readouterr().out
    assert dispatch(["audit", *small, "gold=none", f"hydra.run.dir={tmp_path / 'c'}"]) == 2
    assert dispatch(["audit", *small, "gold=vader", f"hydra.run.dir={tmp_path / 'd'}"]) == 2
