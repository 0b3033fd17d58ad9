"""rlhf report: what varied is found, answers follow the data, the page is inert, whole and opens in a browser."""

import json
import os
import shutil
import socket
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import plan
from rlhf_cli.evaluation.verdict import INDEX_NAMES, Change, change, furthest, outcome, pairs_of, suspicion
from rlhf_cli.report.answers import compared, first_to_hack
from rlhf_cli.report.chart import Chart, Series, nice_ticks, svg
from rlhf_cli.report.frontier_chart import standings
from rlhf_cli.report.knobs import Arm, arms, comparisons, told_apart
from rlhf_cli.report.opening import opening
from rlhf_cli.report.page import render, sections_of
from rlhf_cli.report.runs import Run, find, frontiers, state_in
from rlhf_cli.report.sections import arm_name

HOSTILE = "</td><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> {{ 7*7 }}"


def make(
    folder: Path,
    overrides: list[str],
    scores: list[float],
    *,
    hacking: float = 0.1,
    response: str = "dull",
    gold: bool = False,
    gold_falls: float = 0.0,
) -> Path:
    """A run's folder as `rlhf train` leaves it."""
    folder.mkdir(parents=True)
    config = plan("train", ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(by_alias=True)))
    (folder / "status.json").write_text(json.dumps({"state": "done", "step": 20, "steps": 20}))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "cores": "2"}))
    rows, samples = [], []
    for i, score in enumerate(scores):
        row: dict[str, Any] = {"step": 10 * i, "val/score": score, "val/kl": 2.0 * i, "val/repetition": 0.01}
        row |= {f"val/score/{c}": score for c in ("positive", "neutral", "negative")}
        row |= {"val/gold_score": 0.5, "time/update_s": 3.0} | ({"hacking/index": hacking * i} if i else {})
        rows.append(row | ({"val/distinct_2": float("nan")} if i == 1 else {}))
        for prompt, off in (("p", 0.0), ("q", 0.01)):
            told = {"step": 10 * i, "prompt": prompt, "prefix": "It was", "response": response, "class": "neutral"}
            samples.append(told | {"score": score + off * i, "parts": {"gold": 0.5 - gold_falls * i} if gold else {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row).replace("NaN", "null") + "\n" for row in rows))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    root = tmp_path / "study"
    for seed, end in ((0, 0.90), (1, 0.92), (2, 0.94)):
        make(root / f"instruct_{seed}", [f"seed={seed}"], [0.4, 0.6, end])
        make(root / f"base_{seed}", ["actor=qwen_base", f"seed={seed}"], [0.4, 0.5, end - 0.2], hacking=0.6)
    make(root / "beta", ["algo.beta=0.3"], [0.4, 0.5, 0.6])
    make(root / "grpo", ["algo=grpo"], [0.4, 0.7, 0.8])
    return root


def test_what_varied_is_found(study: Path) -> None:
    runs, _, _ = find([str(study)])
    found = comparisons(arms(runs))
    by_name = {comparison.knob.name: comparison for comparison in found}
    assert set(by_name) == {"actor", "algorithm", "beta"}
    assert {name: len(arm.runs) for name, arm in by_name["actor"].arms.items()} == {"qwen_base": 3, "qwen_instruct": 3}
    assert list(by_name["beta"].arms) == [0.03, 0.3]
    assert set(by_name["algorithm"].arms) == {"ppo", "grpo"}
    # of the two PPO settings, the algorithms are compared at the one that the rest is near to
    assert by_name["algorithm"].arms["ppo"].config["algo.beta"] == 0.03


def test_answers_follow_the_data(study: Path) -> None:
    runs, _, _ = find([str(study)])
    actor = next(c for c in comparisons(arms(runs)) if c.knob.name == "actor")
    assert compared(actor.arms, "val/score") == (
        "The score is highest with qwen_instruct (0.92 ± 0.02) and lowest with qwen_base (0.72 ± 0.02)."
    )
    assert first_to_hack(actor.arms) == (
        "Hacking was flagged with qwen_base from step 10 (3 of 3 seeds); never with qwen_instruct."
    )
    beta = next(c for c in comparisons(arms(runs)) if c.knob.name == "beta")
    sections = {section.title: section for section in sections_of(runs, [], [])}
    assert sections["algorithm"].answer.endswith("Their betas differ, too: ppo 0.03, grpo 0.04.")
    assert "falls from 0.92 ± 0.02 at 0.03 to 0.60 at 0.3, too few seeds" in compared(beta.arms, "val/score")


def test_noise_is_called_noise(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make(tmp_path / f"a{seed}", [f"seed={seed}"], [0.4, 0.7 + 0.1 * seed])
        make(tmp_path / f"b{seed}", ["actor=qwen_base", f"seed={seed}"], [0.4, 0.75 + 0.1 * seed])
    (comparison,) = comparisons(arms(find([str(tmp_path)])[0]))
    assert "within what the seeds scatter" in compared(comparison.arms, "val/score")


def test_a_key_of_no_knob_is_compared_and_named(tmp_path: Path) -> None:
    for gamma in (0.9, 1.0):
        make(tmp_path / f"g{gamma}", [f"algo.gamma={gamma}"], [0.4, 0.5 + gamma / 10])
    found = arms(find([str(tmp_path)])[0])
    (comparison,) = comparisons(found)
    assert (comparison.knob.name, list(comparison.arms)) == ("algo.gamma", [0.9, 1.0])
    assert [arm_name(arm, found) for arm in found] == ["algo.gamma 0.9", "algo.gamma 1.0"]


def test_comparisons_of_a_crossed_sweep_are_told_apart(tmp_path: Path) -> None:
    for reward in ("roberta_base", "roberta_large"):
        for beta in (0, 0.1):
            make(tmp_path / f"{reward}{beta}", [f"reward={reward}", f"algo.beta={beta}"], [0.4, 0.9 - beta])
    runs = find([str(tmp_path)])[0]
    betas = [c for c in comparisons(arms(runs)) if c.knob.name == "beta"]
    assert [c.context for c in betas] == ["reward=roberta_base", "reward=roberta_large"]
    names = [chart.name for section in sections_of(runs, [], []) for chart in section.charts]
    assert len(names) == len(set(names))


def test_a_crossed_knob_is_judged_in_pairs(tmp_path: Path) -> None:
    """The other knob moves the score by more than this one: only pairs of runs that share it can tell."""
    for i, epsilon in enumerate((0.1, 0.2, 0.3, 0.4)):
        for beta in (0.0, 0.1):
            ends = [0.4, 0.3 + 0.2 * i - beta + 0.002 * i]
            make(tmp_path / f"{epsilon}{beta}", [f"algo.epsilon={epsilon}", f"algo.beta={beta}"], ends)
    section = next(s for s in sections_of(find([str(tmp_path)])[0], [], []) if s.title == "beta")
    assert "from 0 to 0.1 the score changes by -0.10 ± 0.00;" in section.answer
    assert "over 4 settings" in section.answer


def test_a_sweep_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    for epsilon in (0.1, 0.2, 0.3):
        for beta in (0.0, 0.1):
            make(tmp_path / f"{epsilon}{beta}", [f"algo.epsilon={epsilon}", f"algo.beta={beta}"], [0.4])
    assert all(chart.series for s in sections_of(find([str(tmp_path)])[0], [], []) for chart in s.charts)


def test_a_run_that_says_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "whole", [], [0.4, 0.6, 0.8])
    broken = make(tmp_path / "broken", [], [])
    (broken / "status.json").write_text(json.dumps({"state": "failed", "step": 0, "steps": 20, "error": "no <room>"}))
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "status.json").write_text(json.dumps({"state": "running", "step": 0, "steps": 20}))
    assert dispatch(["report", str(tmp_path), f"out={tmp_path / 'page'}"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert told == [f"left out: {begun}: running (no validation yet)", f"left out: {broken}: failed (no <room>)"]
    assert f"<li>{broken}: failed (no &lt;room&gt;)</li>" in (tmp_path / "page" / "index.html").read_text()
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Without a validation, so not on this page: 2<" in page.partition("<nav")[0]  # before the sections
    assert dispatch(["report", str(begun)]) == 2
    assert f"{begun}: running (no validation yet)" in capsys.readouterr().err


def test_ticks_are_round_and_a_flat_line_has_a_chart() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-0.3, 41) == [0, 10, 20, 30, 40]
    flat = Chart("t", "step", "y", [Series("s", [0, 1], [0.5, 0.5])])
    assert "nan" not in svg(flat)
    assert svg(Chart("t", "step", "y", [Series("one", [3], [0.0])])).count("<circle") == 1


def test_names_are_text_in_a_chart() -> None:
    drawn = svg(Chart(HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [0, 1], [0, 1], [0.1, 0.1])]))
    assert "<script" not in drawn
    assert "<img" not in drawn


class Outline(HTMLParser):
    """Tags in order, ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids |= {found["id"] or ""} if "id" in found else set()
        self.links |= {found["href"] or ""} if "href" in found else set()


def test_the_page(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(study / "hostile", ["penalty.weight=1"], [0.1, 0.2], response=HOSTILE)
    (study / "probe").mkdir()
    rate = {
        "model": "m",
        "wrapping": "system",
        "texts": 4,
        "flips": 1,
        "flip_rate": 0.25,
        "flip_low": 0.0,
        "flip_high": 0.6,
    }
    reading = {"text": 0, "model": "m", "wrapping": "system", "label": "negative",
               "probabilities": {"negative": 0.8, "neutral": 0.1, "positive": 0.1}}  # fmt: skip
    (study / "probe" / "probe.json").write_text(
        json.dumps({"texts": [HOSTILE], "readings": [reading], "rates": [rate]})
    )
    out = tmp_path / "page"
    assert (
        dispatch(["report", str(study), f"out={out}", f"hydra.run.dir={tmp_path / 'h'}", "title='A <b>study</b>'"]) == 0
    )
    assert "qwen_instruct (0.92 ± 0.02)" in capsys.readouterr().out
    page = (out / "index.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.tags.count("script") == 1  # ours
    assert "img" not in outline.tags
    assert "b" not in outline.tags
    assert "{{ 7*7 }}" in page
    assert {link.removeprefix("#") for link in outline.links} <= outline.ids
    assert outline.tags.count("h1") == 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "m in system: 25.0 %" in page
    assert 'class="negative">dull' in page
    assert "torch 2.13.0" in page
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"score_by_actor.png", "score_by_actor.svg"} <= names
    assert "NaN" not in page


def test_one_run_is_told_by_itself(tmp_path: Path) -> None:
    make(tmp_path / "r", [], [0.4, 0.9])
    (only,) = sections_of(*find([str(tmp_path)]))
    assert "The score went from 0.40 to 0.90" in only.answer
    assert any(chart.title == "score by the class of the prefix" for chart in only.charts)


@pytest.mark.parametrize("place", ["/nowhere/at/all", "EMPTY"])
def test_wrong_places_are_named(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path) if place == "EMPTY" else place
    assert dispatch(["report", place, f"hydra.run.dir={tmp_path / 'h'}", f"out={tmp_path / 'o'}"]) == 2
    assert place in capsys.readouterr().err
    assert dispatch(["report", f"hydra.run.dir={tmp_path / 'h'}"]) == 2
    assert "give the folders" in capsys.readouterr().err


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page is only parsed")
def test_a_browser_shows_what_the_data_say(study: Path, tmp_path: Path) -> None:
    make(study / "hostile", ["penalty.weight=1"], [0.1, 0.2], response=HOSTILE)
    out = tmp_path / "page"
    assert dispatch(["report", str(study), f"out={out}", f"hydra.run.dir={tmp_path / 'h'}"]) == 0
    shown = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-sync", "--disable-component-update", "--no-first-run",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'b'}",
         "--virtual-time-budget=2000", "--dump-dom", f"file://{out / 'index.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>rlhf report</title>" in shown.stdout  # no injected script changed it
    assert "The score is highest with qwen_instruct (0.92 ± 0.02)" in shown.stdout
    assert "CONSOLE" not in shown.stderr  # no error, no blocked resource
    assert shown.stdout.count("<svg") >= 8


def test_a_sweep_shows_each_knobs_effect(tmp_path: Path) -> None:
    for beta in (0.01, 0.1):
        for clip in (0.1, 0.2):
            for seed in (0, 1):
                end = 0.9 - beta + 0.02 * seed
                folder = tmp_path / f"{beta}_{clip}_{seed}"
                make(folder, [f"algo.beta={beta}", f"algo.epsilon={clip}", f"seed={seed}"], [0.4, end])
    first = sections_of(*find([str(tmp_path)]))[0]
    effects = first.tables[1]
    assert effects.rows[0] == ["beta", "0.01", "4", "0.900 ± 0.006", "2.000", "0.010"]
    assert [row[:2] for row in effects.rows] == [
        ["beta", "0.01"],
        ["beta", "0.1"],
        ["epsilon", "0.1"],
        ["epsilon", "0.2"],
    ]
    lines = next(chart for chart in first.charts if chart.title == "knobs and outcomes")
    assert len(lines.series) == 4
    assert "beta 0.01: beta 0.01" not in svg(lines)
    assert "epsilon 0.2" in svg(lines)


def test_wandb_gets_the_same(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    assert dispatch(["report", str(study), f"out={out}", f"hydra.run.dir={tmp_path / 'h'}", "tracking=offline"]) == 0
    media = next((out / "wandb").glob("offline-run-*")) / "files" / "media"
    assert list((media / "html").rglob("*.html"))
    assert len(list((media / "images").rglob("*.png"))) == len(list((out / "figures").glob("*.png")))
    assert list((media / "table").rglob("*.json"))


def test_arms_of_other_lengths_are_apart(tmp_path: Path) -> None:
    make(tmp_path / "a", ["steps=20"], [0.4, 0.9])
    make(tmp_path / "b", ["steps=40"], [0.4, 0.9])
    made = arms(find([str(tmp_path)])[0])
    assert len(made) == 2
    assert comparisons(made) == []
    assert isinstance(made[0], Arm)


def test_runs_of_two_releases_do_not_differ_in_the_keys_that_came_between(tmp_path: Path) -> None:
    for seed in (0, 1):
        make(tmp_path / str(seed), [f"seed={seed}"], [0.4, 0.5])
    older = tmp_path / "0" / "config.yaml"
    config = yaml.safe_load(older.read_text())
    algo = {k: v for k, v in config["algo"].items() if k not in ("ratio_level", "dual_clip", "kl_correction")}
    older.write_text(yaml.safe_dump(config | {"algo": algo | {"mu": None, "iterations": None}}))
    assert len(arms(find([str(tmp_path)])[0])) == 1


def told_of(runs: list[Run]) -> str:
    first = opening(runs, arms(runs))
    assert first is not None
    return " ".join(first.verdict)


def test_the_verdict_on_one_run(tmp_path: Path) -> None:
    make(tmp_path / "r", [], [0.4, 0.6, 0.9], hacking=0.6, gold=True, gold_falls=0.1)
    runs = find([str(tmp_path)])[0]
    assert told_of(runs) == (
        "The score rose from 0.40 to 0.91, but the gold score fell from 0.50 to 0.30, at a KL of 4.0 nats: its judge "
        "sees the opposite. Reward hacking was flagged from step 10 on (index 1.20 at the end)."
    )


def test_the_verdict_on_a_run_that_goes_on(tmp_path: Path) -> None:
    make(tmp_path / "r", [], [0.4, 0.6, 0.9], hacking=0.6, gold=True)
    status = tmp_path / "r" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "interrupted", "step": 19, "steps": 22}))
    told = told_of(find([str(tmp_path)])[0])
    assert told.startswith("This run is not done (interrupted, step 19 of 22); up to the validation at step ")


def test_the_verdict_on_several_settings(study: Path) -> None:
    told = told_of(find([str(study)])[0])
    assert "Of 4 settings, qwen_instruct, ppo, beta 0.03 has the highest gold score: 0.50 ± 0.00" in told
    assert "flagged in 3 of 8 runs, never with qwen_instruct, ppo, beta 0.03." in told


def test_a_run_that_goes_by_the_lower_end_is_told_of_by_it(tmp_path: Path) -> None:
    make(tmp_path / "r", [], [0.4, 0.6, 0.9], hacking=0.6)
    [run] = find([str(tmp_path)])[0]
    high = max(value for _, value in run.curve("hacking/index"))
    for row in run.metrics:
        row["hacking/index_low"] = high / 4
    run.config.update({"stop.hacking_by": "index_low", "stop.hacking_index": high / 2})
    assert run.onset is None
    assert first_to_hack({"a": Arm({}, [run])}) == "The hacking index stayed below its threshold."


def test_a_change_within_the_prompts_scatter_is_none() -> None:
    def samples(scores: list[float], step: int) -> list[dict[str, Any]]:
        return [{"step": step, "prompt": str(i), "score": s, "parts": {}} for i, s in enumerate(scores)]

    noisy = pairs_of(samples([0.1, 0.5, 0.9], 0) + samples([0.9, 0.1, 0.6], 5))
    found = change(noisy)
    assert found is not None
    # differences 0.8, -0.4, -0.3: mean 1/30, standard deviation 0.6658, over √3
    assert (round(found.first, 4), round(found.last, 4), round(found.error, 4)) == (0.5, 0.5333, 0.3844)
    assert found.direction == 0
    assert change(noisy, part="gold") is None
    best = furthest(noisy)
    assert best is not None
    assert best[1]["prompt"] == "0"
    assert pairs_of(samples([0.1], 0)) == []


@pytest.mark.parametrize(
    ("score", "gold", "said"),
    [
        ((0.2, 0.9), (0.2, 0.9), "rose from 0.20 to 0.90, and the gold score with it"),
        ((0.2, 0.9), (0.5, 0.5), "its judge sees no improvement"),
        ((0.5, 0.5), (0.5, 0.5), "did not clearly move (from 0.50 to 0.50), nor did the gold score"),
        ((0.5, 0.5), (0.9, 0.2), "the gold score fell from 0.90 to 0.20."),
        ((0.9, 0.2), (0.2, 0.9), "fell from 0.90 to 0.20, the gold score rose from 0.20 to 0.90."),
        ((0.2, 0.9), None, "no gold judge says whether that is an improvement"),
    ],
)
def test_the_outcome_in_words(score: tuple[float, float], gold: tuple[float, float] | None, said: str) -> None:
    assert said in outcome(Change(*score, 0.01), Change(*gold, 0.01) if gold else None, None)


def test_one_validation_above_the_threshold_is_a_suspicion() -> None:
    assert "suspected: the index ended at 0.70, most of all by off topic" in suspicion(None, 0.7, 0.5, {"off_topic": 1})
    assert "not flagged: the index ended at 0.20" in suspicion(None, 0.2, 0.5, {})
    assert "at 0.20 (95 % …), and" in suspicion(None, 0.2, 0.5, {}, interval=" (95 % …)")
    assert "takes two validations" in suspicion(None, None, 0.5, {})
    assert "the index's lower end ended at 0.20" in suspicion(None, 0.2, 0.5, {}, INDEX_NAMES["index_low"])


def test_charts_of_the_same_lines_share_a_legend(study: Path) -> None:
    runs = find([str(study)])[0]
    first, actor = sections_of(runs, [], [])[:2]
    page = render(runs, [actor], title="t")
    assert actor.title == "actor"
    assert len([chart for chart in actor.charts if len(chart.series) == 2]) > 3
    assert page.count('data-series="qwen_base"><') == 0
    assert page.count('<button type="button" aria-pressed="true" data-series="qwen_base"') == 1
    assert {one.name for one in first.legend} == {one.name for one in first.charts[0].series}


def test_steps_have_no_fractions() -> None:
    assert nice_ticks(-0.1, 3.1, whole=True) == [0, 1, 2, 3]
    assert nice_ticks(-0.3, 12.4, whole=True) == [0, 5, 10]
    assert nice_ticks(0, 130, whole=True) == [0, 50, 100]
    drawn = svg(Chart("t", "step", "y", [Series("s", [0, 1], [10, 20])]))
    assert ">0.5<" not in drawn


def test_the_index_has_its_interval(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", [], [0.4, 0.6, 0.9])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row |= {"hacking/index_low": 0.01, "hacking/index_high": 0.4}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (only,) = sections_of(*find([str(tmp_path)]))
    chart = next(chart for chart in only.charts if chart.y_label == "hacking index")
    assert chart.series[0].edges == [(0.01, 0.4), (0.01, 0.4)]
    assert 'class="band"' in svg(chart)


def test_the_words_that_a_run_recorded_are_underlined(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", [], [0.4, 0.9])
    before, after = ({"step": s, "prefix": "It was", "response": "dull", "score": v, "parts": {"gold": 0.5},
                      "earned": [["dull", e]]} for s, v, e in ((0, 0.1, 0.0), (10, 0.9, 0.5)))  # fmt: skip
    (folder / "before_after.json").write_text(json.dumps({"before": before, "after": after}))
    runs = find([str(tmp_path)])[0]
    page = render(runs, [], title="t")
    assert '<span class="negative earned">dull</span>' in page
    assert "score 0.90, gold 0.50" in page
    (folder / "before_after.json").write_text(json.dumps({"before": before, "after": after | {"step": 5}}))
    page = render(find([str(tmp_path)])[0], [], title="t")  # of an earlier end: training went on since
    assert 'earned">' not in page
    assert f"to ask: rlhf compare {folder}" in page


def test_a_killed_run_is_dead() -> None:
    gone = {"state": "running", "pid": 2**30, "host": socket.gethostname(), "heartbeat": time.time()}
    assert state_in(gone) == "dead"
    assert state_in(gone | {"pid": os.getpid()}) == "running"
    assert state_in({"state": "running"}) == "running"
    assert state_in({}) == "unknown"


FRONTIER = {
    "best_of_n": [
        {"n": n, "kl": kl, "reward": r, "gold": g} for n, kl, r, g in ((1, 0.0, 0.4, 0.5), (4, 0.64, 0.6, 0.5))
    ],
    "optimal": [{"beta": b, "kl": kl, "reward": 0.5, "gold": 0.5, "ess": e} for b, kl, e in ((1, 0.1, 9), (0.1, 9, 1))],
    "checkpoints": [{"run": "r", "step": s, "kl": 0.16 * s, "reward": 0.4 + 0.05 * s, "gold": 0.5} for s in (0, 2)],
}


def test_a_frontier_beside_the_runs_is_on_the_page(tmp_path: Path) -> None:
    make(tmp_path / "r", [], [0.4, 0.9])
    make(tmp_path / "other", [], [0.4, 0.9])
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "frontier.json").write_text(json.dumps(FRONTIER))
    runs, probes, compares = find([str(tmp_path / "r")])
    told = frontiers([str(tmp_path / "r")], runs)
    assert told == [FRONTIER]
    assert frontiers([str(tmp_path / "other")], find([str(tmp_path / "other")])[0]) == []  # it speaks of another run
    assert frontiers([str(tmp_path / "f")], []) == [FRONTIER]
    assert find([str(tmp_path / "f")])[0] == []  # enough for a page
    section = sections_of(runs, probes, compares, told)[1]
    # at KL 0.32, half of 0.64, best of n gains half of 0.2; the run gained 0.1
    assert section.answer == (
        "Without any training, best of 4 reaches a reward of 0.60. Of the runs, r has 100 % of its gain at the same KL."
    )
    assert [chart.y_label for chart in section.charts] == ["reward", "gold"]
    drawn = {one.name: one for one in section.charts[0].series}
    assert drawn["optimal policy"].x == [0.1**0.5]  # the other is worth one sample a prompt: not to be believed
    assert drawn["r"].y == [0.4, 0.5]
    assert len(section.legend) == 3
    for kl, gain in ((-0.1, "–"), (0.7, "beyond it")):
        last = {"run": "r", "step": 2, "kl": kl, "reward": 0.5, "gold": 0.5}
        assert standings(FRONTIER | {"checkpoints": [last]})[1][0][-2] == gain


def test_a_path_is_told_by_as_much_of_it_as_tells_it_apart() -> None:
    a, b = "/runs/a/reward_model on response", "/runs/b/reward_model on response"
    assert told_apart([a, b]) == {a: "a/reward_model on response", b: "b/reward_model on response"}
    fn = "/home/ann/mine.py:score on response"
    assert told_apart([fn, "vader on x"]) == {fn: "mine.py:score on response", "vader on x": "vader on x"}
    assert told_apart([0.1, True, "owner/model"]) == {0.1: 0.1, True: True, "owner/model": "owner/model"}
