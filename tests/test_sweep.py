"""Sweeps: killed, failed, interrupted and resumed; their record and tables."""

import csv
import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import HydraException

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import plan, plan_jobs
from rlhf_cli.config.errors import UserError
from rlhf_cli.runs.best import worth
from rlhf_cli.runs.status import alive, read_status, write_status
from rlhf_cli.sweeps.table import as_csv, cell, markdown, settings
from rlhf_cli.sweeps.terminal import closing

pytestmark = pytest.mark.usefixtures("cache")

SMALL = [
    "scale=mini", "tracking=none", "steps=3", "data.train=30", "data.test=12", "data.labeler=vader", "val.prompts=6",
    "val.every=2", "checkpoint.every=1", "rollout.batch_size=8", "rollout.max_response_length=8",
    "optim.micro_batch_size=4", "gold=none", "reward=python",
]  # fmt: skip

# The length of a response; and, while the file that TROUBLE names is there, the trouble that it asks for.
REWARD = """
import os, signal
from pathlib import Path
calls = {}
def fn(prompts, responses):
    note = Path(os.environ["TROUBLE"])
    calls["n"] = calls.get("n", 0) + 1
    if note.exists() and calls["n"] == int(note.read_text().split()[1]):
        what = note.read_text().split()[0]
        note.unlink()
        if what == "raise":
            raise RuntimeError("no reward today")
        os.kill(os.getpid(), getattr(signal, what))
    return [float(len(r)) for r in responses]
"""


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that says which trouble comes at which call of the reward (6 calls a job: 3 steps, 3 validations)."""
    (tmp_path / "troubled.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TROUBLE", str(tmp_path / "trouble"))

    def comes(what: str, call: int) -> None:
        sys.modules.pop("troubled", None)  # it counts from here
        (tmp_path / "trouble").write_text(f"{what} {call}")

    sys.modules.pop("troubled", None)
    return comes


def sweep(folder: Path, *overrides: str) -> int:
    return dispatch(["sweep", *SMALL, "reward.fn=troubled:fn", f"hydra.sweep.dir={folder}", *overrides])


def in_a_child(action) -> int:
    """The exit code of an action in a forked process, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        os._exit(action())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def table(folder: Path) -> dict:
    """Without what differs from one run to the next: times, and the sweep's own name."""
    found = json.loads((folder / "table.json").read_text())
    found.pop("sweep")
    for row in found["jobs"]:
        row.pop("seconds")
    return found


def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_table(
    tmp_path: Path, trouble, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "whole", "seed=0,1", "algo.beta=0.1,0.2") == 0
    trouble("SIGKILL", 11)  # in the second job's third step
    cut = tmp_path / "cut"
    assert in_a_child(lambda: sweep(cut, "seed=0,1", "algo.beta=0.1,0.2")) == -9
    assert [read_status(cut / str(n)).get("state") for n in range(4)] == ["done", "running", None, None]
    first = (cut / "0" / "status.json").read_text()
    capfd.readouterr()
    assert dispatch(["sweep", f"resume={cut}"]) == 0
    out = capfd.readouterr().out
    assert out.count("resumed at step 2 of 3") == 1
    assert "1 of 4 jobs stay as they are" in out
    assert table(cut) == table(tmp_path / "whole")
    assert (cut / "0" / "status.json").read_text() == first  # not run again
    again = (cut / "1" / "status.json").read_text()
    assert dispatch(["sweep", f"resume={cut}"]) == 0
    assert (cut / "1" / "status.json").read_text() == again


def test_a_failure_is_told_at_once_and_made_good_by_a_resume(
    tmp_path: Path, trouble, capfd: pytest.CaptureFixture[str]
) -> None:
    trouble("raise", 3)
    assert sweep(tmp_path / "s", "seed=0,1") == 1
    told = capfd.readouterr()
    assert "no reward today" in told.err
    assert "Traceback" in (tmp_path / "s" / "0" / "error.log").read_text()
    rows = table(tmp_path / "s")["jobs"]
    assert [row["state"] for row in rows] == ["failed", "done"]
    assert "RuntimeError: no reward today" in (tmp_path / "s" / "table.md").read_text()
    assert dispatch(["sweep", f"resume={tmp_path / 's'}"]) == 0
    assert [row["state"] for row in table(tmp_path / "s")["jobs"]] == ["done", "done"]
    assert sweep(tmp_path / "whole", "seed=0,1") == 0
    assert table(tmp_path / "s") == table(tmp_path / "whole")


def test_fail_fast_starts_no_more_jobs(tmp_path: Path, trouble) -> None:
    trouble("raise", 7)
    assert sweep(tmp_path / "s", "seed=0,1,2", "fail_fast=true") == 1
    assert [row["state"] for row in table(tmp_path / "s")["jobs"]] == ["done", "failed", "not started"]
    assert dispatch(["sweep", f"resume={tmp_path / 's'}"]) == 0


@pytest.mark.parametrize(("call", "state"), [(3, "interrupted"), (6, "done")])
def test_a_signal_stops_the_whole_sweep_and_a_resume_goes_on(tmp_path: Path, trouble, call: int, state: str) -> None:
    """Also in a job's last step, which it ends as if nothing had come."""
    trouble("SIGTERM", call)
    assert sweep(tmp_path / "s", "seed=0,1") == 143
    assert [row["state"] for row in table(tmp_path / "s")["jobs"]] == [state, "not started"]
    assert dispatch(["sweep", f"resume={tmp_path / 's'}"]) == 0


def test_a_resume_refuses_other_configs_and_says_how(
    tmp_path: Path, trouble, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    assert sweep(folder, "seed=0,1", "steps=1") == 0
    record = json.loads((folder / "sweep.json").read_text())
    assert [job["overrides"][-1] for job in record["jobs"]] == ["seed=0", "seed=1"]
    assert record["jobs"][0]["config"] == {"seed": 0}
    assert record["jobs"][0]["config_hash"] != record["jobs"][1]["config_hash"]
    assert sweep(folder, "seed=0,1", "steps=1") == 2
    assert "already holds a sweep" in capsys.readouterr().err
    assert dispatch(["sweep", f"resume={folder}", "algo.beta=0.5"]) == 2
    assert "job 1: algo.beta: 0.03 -> 0.5" in capsys.readouterr().err
    record["shared"]["optim.weight_decay"] = 0.5  # as if conf/ had been edited since
    (folder / "sweep.json").write_text(json.dumps(record))
    assert dispatch(["sweep", f"resume={folder}"]) == 2
    assert "job 0: optim.weight_decay: 0.5 -> 0.0" in capsys.readouterr().err
    assert dispatch(["sweep", f"resume={tmp_path}"]) == 2
    assert "no sweep is there" in capsys.readouterr().err


def test_two_processes_do_not_run_one_sweep(tmp_path: Path, trouble, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    assert sweep(tmp_path / "s", "seed=0", "steps=1") == 0
    with (tmp_path / "s" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_a_child(lambda: dispatch(["sweep", f"resume={tmp_path / 's'}"])) == 2


def test_a_sweep_of_evaluations_has_a_table_too(tmp_path: Path, trouble) -> None:
    small = [o for o in SMALL if not o.startswith("checkpoint")]
    judged = ["eval", "--multirun", *small, "reward.fn=troubled:fn", f"hydra.sweep.dir={tmp_path / 's'}"]
    assert dispatch([*judged, "seed=0,1"]) == 0
    rows = table(tmp_path / "s")["jobs"]
    assert all(row["state"] == "done" and row["val/score"] > 0 for row in rows)


def row(number: int, overrides: list[str], score: float, state: str = "done") -> dict:
    return {"job": number, "overrides": overrides, "state": state, "val/score": score, "seconds": 1.0, "error": None}


def test_settings_are_means_over_seeds_of_what_is_done() -> None:
    jobs = [
        row(0, ["algo.beta=0.1", "seed=0"], 0.2),
        row(1, ["algo.beta=0.1", "seed=1"], 0.6),
        row(2, ["algo.beta=0.2", "seed=0"], 0.5),
        row(3, ["algo.beta=0.2", "seed=1"], 9.0, state="failed"),
    ]
    first, second = settings(jobs, ("val/score",))
    assert first["overrides"] == ["algo.beta=0.1"]
    assert first["val/score"] == pytest.approx(0.4)
    assert first["val/score_std"] == pytest.approx(0.2 * 2**0.5)
    assert (second["seeds"], second["val/score"], second["val/score_std"]) == (1, 0.5, None)
    assert settings([row(0, ["seed=0"], 1.0)], ("val/score",)) == []


def test_cells_are_neither_formulas_nor_markup() -> None:
    assert cell("=1+1") == "'=1+1"
    assert cell("@x") == "'@x"
    assert cell("-0.5") == "-0.5"
    assert cell(-0.5) == -0.5
    jobs = [row(0, ["prompt.user==HYPERLINK('x')|y"], 0.2), row(1, ["+reward.fn=a:b"], 0.3)]
    jobs[0]["error"] = "=cmd|' /C calc'!A0\n| more"
    made = {"sweep": "s", "common": [], "metrics": ["val/score"], "jobs": jobs, "settings": []}
    lines = list(csv.reader(io.StringIO(as_csv(made))))
    assert lines[0][:3] == ["job", "prompt.user", "reward.fn"]
    assert not [c for line in lines for c in line if c[:1] in ("=", "@", "+")]
    rows = [line for line in markdown(made).splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


def test_who_is_alive(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        write_status(tmp_path, "running", step=1, steps=2)
        time.sleep(60)
        os._exit(0)
    while not (status := read_status(tmp_path)):
        time.sleep(0.01)
    assert alive(status)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not alive(status)
    assert alive(status | {"host": "elsewhere"})
    assert not alive(status | {"host": "elsewhere", "heartbeat": 0})
    assert not alive({})


@pytest.mark.parametrize(("name", "key"), [("beta", "beta"), ("epsilon", "epsilon"), ("lambda", "lam")])
def test_named_sweeps(name: str, key: str) -> None:
    jobs = plan("train", ["scale=mini", f"experiment=sweep_{name}", "seed=0,1"], multirun=True, config_dir=None).jobs
    assert len({getattr(job.algo, key) for job in jobs}) == 5
    assert len(jobs) == 10


def test_a_definition_for_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    typed = ["scale=mini", "algo.beta=0.02,0.1", "reward=roberta_base,roberta_large", "seed=range(3)", "steps=5"]
    assert dispatch(["sweep", "wandb", *typed]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["method"] == "grid"
    assert made["metric"] == {"name": "val/score", "goal": "maximize"}
    assert made["command"] == ["${env}", "rlhf", "train", "scale=mini", "steps=5", "${args_no_hyphens}"]
    assert made["parameters"] == {
        "algo.beta": {"values": [0.02, 0.1]},
        "reward": {"values": ["roberta_base", "roberta_large"]},
        "seed": {"values": [0, 1, 2]},
    }
    between = ["algo.beta=tag(log,interval(0.01,0.3))", "algo.lambda=0.9,1.0", f"out={tmp_path / 'sweep.yaml'}"]
    assert dispatch(["sweep", "wandb", "scale=mini", *between]) == 0
    made = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert made["method"] == "bayes"
    assert made["parameters"]["algo.beta"] == {"distribution": "log_uniform_values", "min": 0.01, "max": 0.3}
    capsys.readouterr()
    assert dispatch(["sweep", "wandb", "scale=mini", "algo.beta=0.1"]) == 2
    assert "nothing is swept" in capsys.readouterr().err
    assert dispatch(["sweep", "wandb", "scale=mini", "algo.beta=0.1,-1"]) == 2
    assert dispatch(["sweep", "wandb", "scale=mini", "experiment=sweep_beta"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["parameters"]["algo.beta"]["values"]) == 5


@pytest.mark.parametrize(
    ("typed", "values"),
    [("algo.beta=1e-05,1", [1e-05, 1]), ("name=yes,no", ["yes", "no"]), ("name='2024','x y'", ["'2024'", "'x y'"])],
)
def test_wandb_gets_values_as_hydra_reads_them(typed: str, values: list, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML would make true of yes, and a text of 1e-05; quotes stay, for Hydra to read once more."""
    import yaml

    assert dispatch(["sweep", "wandb", "scale=mini", typed]) == 0
    [found] = yaml.safe_load(capsys.readouterr().out)["parameters"].values()
    assert found == {"values": values}
    assert [type(value) for value in found["values"]] == [type(value) for value in values]


def test_what_a_job_is_worth_to_a_search() -> None:
    metrics = {"val/score": 0.9, "val/kl": 10.0}
    assert worth(metrics, "val/score", None) == 0.9
    assert worth(metrics, "val/score", 12.0) == 0.9
    assert worth(metrics, "val/score", 8.0) == pytest.approx(-1.1)
    assert worth(metrics, "val/other", 8.0) is None


def test_params_of_an_experiment_are_swept_and_typed_ones_win(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      algo.beta: 0.1,0.2\n      seed: range(2)\n"
    )
    jobs = plan("train", ["scale=mini", "experiment=mine"], multirun=True, config_dir=str(tmp_path)).jobs
    assert [(j.algo.beta, j.seed) for j in jobs] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    jobs = plan("train", ["scale=mini", "experiment=mine", "seed=7"], multirun=True, config_dir=str(tmp_path)).jobs
    assert [(j.algo.beta, j.seed) for j in jobs] == [(0.1, 7), (0.2, 7)]


@pytest.mark.parametrize(
    "typed",
    [
        ["algo=ppo,grpo", "seed=1,2", "algo.beta=0.1,0.2"],
        ["experiment=sweep_beta", "seed=0,1", "reward=vader", "penalty.n=[2,3]"],
        ["gold=vader", "+gold@gold.others.roberta_base=roberta_base", "tags=[a],[b]", "optim.actor_lr=1e-5"],
        ["debug=fast", "steps=3,4", "prompt.user='a {prefix}'", "actor=qwen_base,qwen_instruct", "scale=mini,full"],
        ["++algo.beta=0.3", "seed=1,2", "algo.beta=0.1"],
        ["tracking=[wandb,tensorboard]", "notes=a,b", "hydra.sweep.dir=x", "name=null"],
    ],
)
def test_jobs_that_share_their_options_are_as_composed_each(typed: list[str]) -> None:
    """What chooses options is composed once a combination; key by key it is what Hydra composes of the whole line."""
    typed = ["scale=mini", *typed]
    planned = plan("train", typed, multirun=True, config_dir=None)
    alone = [plan_jobs("train", [job], planned.engine) for job in planned.overrides]
    assert planned.jobs == [one.jobs[0] for one in alone]
    assert len(planned.jobs) > 1
    assert planned.launcher == alone[0].launcher


def test_a_wrong_value_of_a_job_is_told_as_of_one_alone() -> None:
    for wrong in ("algo.betta=1", "algo.beta=x", "~algo.betta"):
        said = []
        for line, multirun in ((["seed=1,2", wrong], True), (["seed=1", wrong], False)):
            with pytest.raises((UserError, HydraException)) as refused:
                plan("train", ["scale=mini", *line], multirun=multirun, config_dir=None)
            said.append(str(refused.value))
        assert said[0] == said[1]


def test_the_end_names_the_best_job_and_overrides_are_as_they_were_typed(tmp_path: Path) -> None:
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    rows = [
        {"job": 0, "overrides": ["seed=0"], "state": "done", "val/score": 0.4},
        {"job": 1, "overrides": ["reward.fn=mine\\:score"], "state": "done", "val/score": 0.6},
        {"job": 2, "overrides": ["seed=2"], "state": "failed", "val/score": 0.9},
    ]
    table = {"sweep": str(tmp_path), "objective": "val/score", "jobs": rows}
    first, *others = closing(table)
    assert first == "best so far: job 1 (reward.fn=mine:score), val/score 0.60:"
    assert others[0].strip() == str(tmp_path / "1")
    assert any(f"rlhf sample checkpoint={tmp_path / '1'}" in line for line in others)
    assert closing(table | {"jobs": rows[2:]}) == []


def job_that_kept_its_best(place: Path, scores: dict[int, float], *, kl: float = 0.0, **kept: str) -> dict:
    """A row of the table, and the folder of a run with these validations and the checkpoints of its best and last."""
    sign = -1 if kept.get("best_is") == "lowest" else 1
    steps = {"best": max(list(scores)[1:], key=lambda step: sign * scores[step]), "last": max(scores)}
    for name, step in steps.items():
        (place / "checkpoints" / f"step_{step:06d}").mkdir(parents=True, exist_ok=True)
        (place / "checkpoints" / name).write_text(f"step_{step:06d}\n")
    rows = [{"step": step, "val/score": score, "val/kl": kl} for step, score in scores.items()]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "config.yaml").write_text(json.dumps({"checkpoint": kept, "kl_budget": 8.0}))
    return {"job": int(place.name), "overrides": [f"seed={place.name}"], "state": "done", **rows[-1]}


def test_the_best_of_a_sweep_is_the_best_checkpoint_of_a_job(tmp_path: Path) -> None:
    curves = {0: {0: 0.4, 3: 0.5, 6: 0.5}, 1: {0: 0.9, 3: 0.6, 6: 0.2}}
    rows = [job_that_kept_its_best(tmp_path / str(n), c, best="val/score") for n, c in curves.items()]
    bought = job_that_kept_its_best(tmp_path / "2", {0: 0.4, 6: 0.8}, kl=10.0, best="val/score")
    table = {"sweep": str(tmp_path), "objective": "val/score", "jobs": [*rows, bought]}
    checkpoint = tmp_path / "1" / "checkpoints" / "step_000003"
    first, where, caption, *others = closing(table)
    assert first == "best: job 1 (seed=1), val/score 0.60 at step 3:"
    assert (where.strip(), caption.strip()) == (
        str(checkpoint), "(the table has last validations: job 1 ended at 0.20)"
    )  # fmt: skip
    assert any(f"rlhf sample checkpoint={checkpoint} " in line for line in others)
    (tmp_path / "0" / "config.yaml").write_text("{}")
    (tmp_path / "1" / "config.yaml").write_text("checkpoint: {best: val/kl}")  # not by what the sweep is about
    assert closing(table)[0] == "best: job 0 (seed=0), val/score 0.50 at step 6:"


def test_the_best_of_a_sweep_may_be_the_lowest(tmp_path: Path) -> None:
    curves = {0: {0: 0.4, 3: 0.5, 6: 0.5}, 1: {0: 0.1, 3: 0.3, 6: 0.7}}
    kept = {"best": "val/score", "best_is": "lowest"}
    rows = [job_that_kept_its_best(tmp_path / str(n), c, **kept) for n, c in curves.items()]
    table = {"sweep": str(tmp_path), "objective": "val/score", "jobs": rows}
    assert closing(table)[0] == "best: job 1 (seed=1), lowest val/score 0.30 at step 3:"
    for row in rows:
        (tmp_path / str(row["job"]) / "config.yaml").write_text("{}")
    assert closing(table)[0].startswith("best: job 1 (seed=1), val/score 0.70 at step 6")
    for row in rows:
        (tmp_path / str(row["job"]) / ".hydra").mkdir(exist_ok=True)
        (tmp_path / str(row["job"]) / ".hydra" / "hydra.yaml").write_text("hydra: {sweeper: {direction: minimize}}")
    assert closing(table)[0] == "best: job 0 (seed=0), lowest val/score 0.50 at step 6:"


def test_a_sweep_of_evaluations_names_the_best_and_no_page(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    rows = [{"job": 0, "overrides": ["seed=0"], "state": "done", "val/score": 0.4}]
    told = closing({"sweep": str(tmp_path), "objective": None, "jobs": rows})
    assert told == ["best: job 0 (seed=0), val/score 0.40:", f"      {tmp_path / '0'}"]
