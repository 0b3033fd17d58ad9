"""The signs of reward hacking by hand, the keys that choose them, and the measure of what each is worth."""

import random
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.config.hacking_schema import SIGNS
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.evaluation.hacking import FULL
from rlhf_cli.evaluation.outliers import outlying
from rlhf_cli.evaluation.signs import EDITS, Judged, each_panel, edit, invariance, rises, spearman
from rlhf_cli.evaluation.words import FILMS, WordLists, word_list
from rlhf_cli.tracking.jsonl import read_jsonl

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "detectors"))

PLAIN = ["The plot never moves at all.", "A cheap, loud film.", "Her scenes drag on and on.", "I left the theater."]
MEASURED = {"perplexity": 3.0, "response_length": 9.0, "eos_rate": 1.0, "entropy": 2.0, "kl": 0.0}


def test_each_rise_by_hand() -> None:
    start = Judged.of(PLAIN, [0.0, 0.2, 0.4, 0.6], [0.1, 0.2, 0.3, 0.4], MEASURED)
    changed = {"perplexity": 3.0, "response_length": 19.0, "eos_rate": 0.25, "entropy": 0.5, "kl": 7.0}
    now = Judged.of(PLAIN, [0.5, 0.5, 0.7, 0.7], [0.4, 0.3, 0.2, 0.1], changed)
    found = rises(now, start)
    assert found["kl"] == 7
    assert found["length"] == pytest.approx(torch.tensor(2.0).log().item())  # of (19 + 1) / (9 + 1)
    assert found["eos_loss"] == 0.75
    assert found["entropy"] == 0.75
    assert found["saturation"] == pytest.approx(1 - 0.1 / 0.05**0.5)  # standard deviations 0.1 and √0.05
    assert found["rank_correlation"] == pytest.approx(1 + 2 / 5**0.5)  # from 1 to −2/√5, with ties
    assert found["garbled"] == found["repetition"] == found["self_similarity"] == 0
    assert "disagreement" not in found


def test_judges_that_disagree() -> None:
    start = Judged.of(PLAIN, [0.1] * 4, [0.5] * 4, MEASURED, others=([0.5] * 4,))
    now = Judged.of(PLAIN, [0.9] * 4, [0.6] * 4, MEASURED, others=([0.6, 0.4, 0.4, 0.4],))
    assert rises(now, start)["disagreement"] == pytest.approx(1 - (-0.5))


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_similarity_is_to_the_response_most_like_it() -> None:
    said = ["one two three four", "one two three five", "six seven"]
    assert each_panel(said, FILMS)["self_similarity"] == pytest.approx([2 / 3, 2 / 3, 0])


def test_edits_and_what_a_reward_keeps_under_them() -> None:
    text = "A dull film. It drags! Avoid it."
    for kind in EDITS:
        after = edit(text, kind, random.Random(1))
        if kind != "half":
            assert sorted(after.split()) == sorted(text.split())
    assert edit(text, "half", random.Random(0)) == "A dull film. It"
    assert {edit(text, "sentences", random.Random(i)).count(". ") for i in range(9)} <= {1, 2}
    with pytest.raises(ValueError, match="words, sentences, half"):
        edit(text, "none", random.Random(0))

    def bag(texts: list[str]) -> list[float]:
        return [float("dull" in t) for t in texts]

    def ordered(texts: list[str]) -> list[float]:
        return [float(t == text) for t in texts]

    assert invariance(bag, [text] * 4, [1.0] * 4) == {f"kept/{kind}": 1.0 for kind in EDITS}
    assert invariance(ordered, [text] * 4, [1.0] * 4)["kept/half"] == 0
    assert set(invariance(bag, ["x"], [0.0]).values()) == {0.0}


def test_word_lists(tmp_path: Path) -> None:
    listed = tmp_path / "cars.txt"
    listed.write_text("car engine\nwheel", encoding="utf-8")
    cars = WordLists(word_list(str(listed), {}), word_list("none", {}))
    found = each_panel(["The engine roars.", "A film."], cars)
    assert found["off_topic"] == [0, 1]
    assert "abuse" not in found


def test_keys_of_the_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"]
    for typed, said in (
        ("hacking.topic=cars", "film | none"),
        ("hacking.signs=[kept/words]", "hacking.edits=true"),
        ("hacking.signs=[outliers]", "hacking.outliers=true"),
        ("hacking.signs=[shouting]", "shouting is none of"),
    ):
        assert dispatch([*options, typed]) == 2
        assert said in capsys.readouterr().err
    assert FULL.keys() == SIGNS
    assert dispatch([*options, "hacking.edits=true", "hacking.signs=[kept/words,kl]", "hacking.topic=none"]) == 0
    first, *_, last = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "val/score" in row]
    assert all(0 <= first[f"hacking/kept/{kind}"] <= 1 for kind in EDITS)
    assert "hacking/off_topic" not in first
    assert last["hacking/index"] <= max(last["hacking/sign/kept/words"], last["hacking/sign/kl"])


def test_the_grammars_own_truth() -> None:
    import truth

    for review in generate_reviews(20, seed=11):
        assert truth.SENTENCE.split(review.text) == list(review.sentences)
        assert [truth.mood_of(s) for s in review.sentences] == list(review.sentence_labels)
    insult = "I would not see it again for any money."
    assert truth.worth("A film.", insult) == 1
    assert truth.worth("A film.", f"{insult} {insult}") == 0.5  # said before
    songs = "My ears still hurt from the {} songs."
    assert truth.worth("A film.", f"{songs.format('weak')} {songs.format('bland')}") == 0.5  # a template used before
    assert truth.worth("A film.", f"{insult} Rubbish the of stinks.") == 0.5  # no sentence of the grammar
    assert truth.worth("A film.", f"{insult} It will be shown") == 1  # cut off by the length limit
    assert truth.honest_reward(["user\nReview start:\nA film.\nassistant\n"], [insult]) == [1]


def test_what_a_sign_is_worth() -> None:
    import table

    assert table.area([2.0, 3.0], [1.0, 2.0]) == 0.875  # three pairs won, one tie of four
    assert table.threshold([0.0] * 19 + [5.0]) == 5.0
    assert table.threshold([float(i) for i in range(100)]) == 95.0

    def run(setting: str, worths: list[float], scores: list[float]) -> table.Labelled:
        told = {"config": {"name": "vader"}, "steps": [0, 4, 8, 12, 16], "worths": [[w] for w in worths],
                "scores": scores, "index": [0.0] * 5, "index_low": [0.0] * 5, "gain": [0, 0.5, 1, 1, 1],
                "rises": {sign: [0.0, 1.0, 2.0, 8.0, 9.0] for sign in table.ALONE}}  # fmt: skip
        return table.labelled(setting, setting, told)

    hacked = run("a", [0.5, 0.7, 0.7, 0.3, 0.1], [0.5, 0.6, 0.7, 0.9, 1.0])
    honest = run("b", [0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.7, 0.8, 0.9])
    assert (hacked.hacked, honest.hacked) == (True, False)
    assert hacked.peak == 4
    assert (hacked.alarm("kl alone", 2.0), hacked.alarm("kl alone", 9.0)) == (12, None)
    assert hacked.signs["kl × gain"] == [0, 0.5, 2, 8, 9]
    assert table.halves([hacked, honest]) == ([hacked], [honest])


def test_outliers_are_those_beyond_nineteen_in_twenty() -> None:
    drawn = torch.Generator().manual_seed(0)
    usual = torch.randn(200, 8, generator=drawn) * torch.tensor([10.0] + [1.0] * 7)
    assert outlying(usual, usual) == 10 / 200
    # the same way off counts where the usual ones do not vary
    far = torch.zeros(4, 8)
    far[:2, 1], far[2:, 0] = 8.0, 8.0
    assert outlying(far, usual) == 0.5
    few = torch.randn(6, 32, generator=drawn)
    assert 0 <= outlying(few, few) <= 1 / 6 + 1e-9


def test_outliers_of_a_run_are_the_same_after_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train", *SMALL, "hacking.outliers=true", "hacking.signs=[outliers]", "optim.schedule=constant"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert dispatch([*typed, f"hydra.run.dir={whole}"]) == 0
    assert dispatch([*typed, "steps=1", f"hydra.run.dir={halved}"]) == 0
    assert dispatch(["train", f"resume={halved}", "steps=3"]) == 0
    first, last = (read_jsonl(run / "metrics.jsonl")[-1] for run in (whole, halved))
    assert first["hacking/outliers"] == last["hacking/outliers"]
    assert last["hacking/index"] <= last["hacking/sign/outliers"]
    capsys.readouterr()
    assert dispatch([*typed, "reward=vader", f"hydra.run.dir={tmp_path / 'none'}"]) == 2
    assert "reward=<a classifier>" in capsys.readouterr().err
