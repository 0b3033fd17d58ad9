"""Runs one can find: names and tags, rlhf runs, and a new run from another's policy."""

import json
from pathlib import Path

import pytest
import yaml
from helpers.runs import numbers, train

from rlhf_cli.cli import dispatch
from rlhf_cli.commands.runs import ago, show, wrapped
from rlhf_cli.runs.catalogue import catalogue, chosen, default_name
from rlhf_cli.runs.status import write_status
from rlhf_cli.tracking.jsonl import as_line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, and one that begins where it ended."""
    folder = tmp_path_factory.mktemp("runs")
    # A learning rate at which three steps move the policy.
    assert train(folder / "first", "optim.actor_lr=1e-3", "optim.warmup_steps=0", "tags=[a,b]", "notes=one try") == 0
    words = [f"from={folder / 'first'}", "algo.beta=0.5", "name=second", "tracking=none"]
    assert dispatch(["train", *words, f"hydra.run.dir={folder / 'second'}"]) == 0
    return folder


def test_a_new_run_begins_with_the_policy_and_the_settings_of_another(home: Path) -> None:
    first, second = numbers(home / "first"), numbers(home / "second")
    for metric in ("val/score", "val/kl", "val/gold_score"):
        assert second[0][metric] == pytest.approx(first[-1][metric], rel=1e-6)
    assert first[-1]["val/kl"] > 0.01  # it counts from the actor that the first run began with
    assert second[0]["step"] == 0
    before, after = (yaml.safe_load((home / name / "config.yaml").read_text()) for name in ("first", "second"))
    differ = {key for key in after if after[key] != before[key]}
    assert differ == {"from", "name", "tags", "notes", "algo"}
    assert after["algo"] == before["algo"] | {"beta": 0.5}
    assert after["from"] == str(home / "first")


def test_it_goes_on_by_itself(home: Path) -> None:
    assert dispatch(["train", f"resume={home / 'second'}", "steps=4"]) == 0
    assert [row["step"] for row in numbers(home / "second")] == [0, 1, 2, 3, 4]


def test_from_brings_its_own_actor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"hydra.run.dir={home / 'third'}"
    assert dispatch(["train", f"from={home / 'first'}", "actor=qwen_base", where]) == 2
    assert "leave actor= away" in capsys.readouterr().err
    assert dispatch(["train", f"from={home / 'nowhere'}", where]) == 2
    assert "from=" in capsys.readouterr().err
    assert not (home / "third" / "metrics.jsonl").exists()


def test_runs_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["runs", str(home), "tag=b", "as_json=true"]) == 0
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["name"] == "ppo roberta_large qwen_instruct seed 0"
    assert (line["state"], line["step"], line["tags"], line["notes"]) == ("done", 3, ["a", "b"], "one try")
    assert line["score"] == numbers(home / "first")[-1]["val/score"]
    assert dispatch(["runs", str(home)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("second") < shown.index("ppo roberta_large")  # the newest first
    assert dispatch(["runs", str(home), "state=failed"]) == 0
    assert "none of 2 runs" in capsys.readouterr().out
    assert dispatch(["runs", str(home / "nowhere")]) == 2
    assert dispatch(["runs", str(home), "sort=sore"]) == 2


def test_a_killed_run_is_dead_and_older_and_broken_ones_do_not_matter(tmp_path: Path) -> None:
    old = {"algo": {"name": "grpo"}, "reward": {"name": "python"}, "actor": {"path": "/m/tiny"}, "seed": 3}
    for name, config in (("killed", old), ("broken", {"algo": 1}), ("no policy", {"seed": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        write_status(tmp_path / name, "running", step=1, steps=9)
    status = json.loads((tmp_path / "killed" / "status.json").read_text())
    (tmp_path / "killed" / "status.json").write_text(json.dumps(status | {"pid": 2**22 + 1}))
    (tmp_path / "killed" / "metrics.jsonl").write_text(as_line({"step": 0, "val/score": 0.5}))
    [line] = catalogue([str(tmp_path)])
    assert line["name"] == default_name(old) == "grpo python tiny seed 3"
    assert (line["state"], line["score"], line["kl"], line["tags"]) == ("dead", 0.5, None, [])


def test_what_lacks_a_figure_comes_last() -> None:
    runs = [{"name": n, "state": "done", "tags": [], "score": s} for n, s in (("a", None), ("b", 0.1), ("c", 0.9))]
    assert [run["name"] for run in chosen(runs, sort="score", state=None, tag=None)] == ["c", "b", "a"]
    assert [ago(s) for s in (5, 300, 7200, 864000)] == ["5 s", "5 min", "2 h", "10 d"]


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_a_terminal_of_80_columns_tears_no_seed_from_its_number(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "ppo roberta_large qwen_instruct seed 0"
    about = {"state": state, "step": 250, "steps": 1000, "score": 0.31, "gold": 0.49, "kl": 12.25, "hacking": 0.1}
    show([{"name": name, "folder": "outputs/a/1", **about, "age_s": 110.0, "tags": [], "notes": ""}])
    shown = capsys.readouterr().out
    for whole in ("seed 0", f"{state} ", "250/1000 ", "12.25", "110 s"):
        assert whole in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert wrapped(name, 36) == "ppo roberta_large qwen_instruct\nseed 0"
