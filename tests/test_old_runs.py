"""Runs of older releases go on: what their configs lack means as before. scripts/old_run.py makes tests/data/run_*."""

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from rlhf_cli.cli import dispatch
from rlhf_cli.config import compose, schemas
from rlhf_cli.config.algo_schema import Algo
from rlhf_cli.config.compose import CONF, added, changed
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.faults import validate
from rlhf_cli.config.flat import flat, nested
from rlhf_cli.config.older import as_before
from rlhf_cli.config.schema import Config
from rlhf_cli.config.section import Before, Section
from rlhf_cli.runs.checkpoint import MANIFEST, _identity
from rlhf_cli.sweeps import sweep
from rlhf_cli.tracking.jsonl import read_jsonl

KEPT = sorted((Path(__file__).parent / "data").glob("run_*"))
"""One folder a release: actor, reviews, a run of one step, the metrics of its second."""


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a release left (the newest, or the one asked for), as the working directory."""
    kept = getattr(request, "param", KEPT[-1])
    shutil.copytree(kept, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def forget(home: Path, *keys: str, put: dict[str, Any] | None = None) -> None:
    """Take keys (and sections) out of what the run saved, its checkpoint's own config too; `put` others in."""

    def without(config: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in flat(config).items() if not any(k == key or k.startswith(f"{key}.") for key in keys)}
        return nested(kept | (put or {}))

    config = home / "run" / "config.yaml"
    config.write_text(yaml.safe_dump(without(yaml.safe_load(config.read_text()))))
    checkpoint = home / "run" / "checkpoints" / "step_000001"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"config": without(state["config"])}))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["state.json"] = _identity(checkpoint / "state.json")
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def saved(home: Path) -> dict[str, Any]:
    return yaml.safe_load((home / "run" / "config.yaml").read_text())


def told(said: str, after: str) -> list[str]:
    """The "key=value"s of the line that has `after`, without those that this release itself added or gave up."""
    [line] = [line for line in said.splitlines() if after in line]
    kept = yaml.safe_load((KEPT[-1] / "run" / "config.yaml").read_text())
    whole = as_before(kept, Config, {})
    own = {*added(kept, whole), *added(whole, kept)}
    items = re.split(r", (?=[\w.]+=)", line.partition(after)[2])  # a list has commas of its own
    return [item for item in items if item.partition("=")[0] not in own]


def as_expected(home: Path) -> None:
    """The second step is that of the release's run which was never cut; processors differ in the last digits."""
    expected = json.loads((home / "step_2.json").read_text())
    row = read_jsonl(home / "run" / "metrics.jsonl")[-1]
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("home", KEPT, indirect=True, ids=lambda folder: folder.name)
def test_a_run_of_an_older_release_goes_on_as_there(home: Path) -> None:
    assert dispatch(["train", "resume=run", "steps=2"]) == 0
    as_expected(home)


@pytest.mark.parametrize("kept", KEPT, ids=lambda folder: folder.name)
def test_every_key_that_is_new_says_what_means_as_before(kept: Path) -> None:
    """Else a run would take whatever today's default happens to be."""
    assert unsaid(Config, kept) == []

    class Newer(Config):
        patience: int
        unit: Literal["words", "tokens"] = "words"
        retries: Annotated[int, Before(0)]

    assert unsaid(Newer, kept) == ["patience"]


def unsaid(schema: type[Section], kept: Path) -> list[str]:
    """Keys that a release did not know, without a `Before` and without a default."""
    config = yaml.safe_load((kept / "run" / "config.yaml").read_text())
    with_none, marked = (as_before(config, schema, {}), as_before(config, schema, everything(schema)))
    return sorted(added(with_none, marked))


def everything(schema: type[Section]) -> dict[str, Any]:
    """A value for every key, recursively: what `as_before` takes from here nobody stated."""
    fields = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    return {
        key: everything(kind) if isinstance(kind, type) and issubclass(kind, Section) else "unsaid"
        for key, kind in fields.items()
    }


def test_what_a_saved_config_lacks_is_filled_in_and_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = flat(saved(home))
    forget(home, "stop", "val.batch_size", "algo.value_clip", "reward.endpoint", "rollout.cuda_graphs")
    assert dispatch(["train", "resume=run", "steps=2"]) == 0
    wanted = {"stop.on_hacking=false", "stop.hacking_index=0.5", "algo.value_clip=0.2", "rollout.cuda_graphs=false",
              "val.batch_size=150", "reward.endpoint=null"}  # fmt: skip
    says = "made before these keys existed; they take the value that means as before: "
    assert set(told(capsys.readouterr().out, says)) == wanted
    as_expected(home)
    after = flat(saved(home))
    gone = {"algo.iterations", "algo.mu", "tracking.name"}  # tracking.to since
    assert {k for k in before if before[k] != after.get(k)} == {
        "steps",
        "resume",
        "rollout.cuda_graphs",
        "tracking.name",
    }
    assert before.keys() - after.keys() == gone


def test_a_change_is_refused_also_of_a_key_that_the_saved_config_lacks(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(home, "optim.weight_decay", "stop")
    for typed, said in (
        ("algo.beta=0.5", "algo.beta: 0.03 -> 0.5"),
        ("optim.weight_decay=0.5", "optim.weight_decay: None -> 0.5"),
        ("algo=grpo", "algo.advantage: 'gae' -> 'group'"),
    ):
        assert dispatch(["train", "resume=run", "steps=2", typed]) == 2
        assert said in capsys.readouterr().err
    assert dispatch(["train", "resume=run", "steps=2", "stop.hacking_index=0.9"]) == 0  # this one may change
    [line] = [line for line in capsys.readouterr().out.splitlines() if "made before these keys existed" in line]
    assert "stop.on_hacking=false" in line
    assert "hacking_index" not in line
    stated = {"on_hacking": False, "raise_by": 2.0, "times": 3, "when": [], "patience": 1, "hacking_by": "index"}
    assert saved(home)["stop"] == {"hacking_index": 0.9} | stated


class Early(Section):
    after: Annotated[int, Before(0)]
    of: Annotated[list[str], Before([])]


class NewerAlgo(Algo):
    momentum: Annotated[float, Before(0.0)]


class Newer(Config):
    algo: NewerAlgo
    patience: Annotated[int, Before(0)]
    early: Early


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release: a key of its own, one in a group and a section, each with a default that is not as before."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    train = (conf / "train.yaml").read_text()
    (conf / "train.yaml").write_text(train.replace("\nseed:", "\npatience: 3\nearly: {after: 4, of: [val/kl]}\nseed:"))
    (conf / "algo" / "ppo.yaml").write_text((conf / "algo" / "ppo.yaml").read_text() + "\nmomentum: 0.9\n")
    for module, name, value in (
        (compose, "CONF", conf),
        (sweep, "CONF", conf),
        (compose, "Config", Newer),
        (schemas, "Config", Newer),
    ):
        monkeypatch.setattr(module, name, value)


AS_BEFORE = {"algo.momentum": 0.0, "patience": 0, "early.after": 0, "early.of": []}
OPTIONS = [
    "scale=mini", "tracking=none", "actor.path=./actor", "data.source=./reviews.jsonl", "cache_dir=./cache",
    "data.labeler=vader", "data.train=12", "data.test=6", "reward=vader", "gold=none", "prompt=plain", "val.prompts=6",
    "val.every=1", "checkpoint.every=1", "rollout.batch_size=8", "rollout.max_response_length=6",
    "optim.schedule=constant", "optim.actor_lr=2e-3", "optim.critic_lr=1e-3",
    "optim.warmup_steps=0", "algo.minibatches=2", "device=cpu",
    "precision=fp32", "algo=ppo",
]  # fmt: skip


def gained(folder: Path) -> dict[str, Any]:
    config = flat(yaml.safe_load((folder / "config.yaml").read_text()))
    return {key: config[key] for key in AS_BEFORE}


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("line", [["resume=run"], ["resume=auto", "hydra.run.dir=run", *OPTIONS]])
def test_keys_that_a_later_release_adds_break_no_run(
    home: Path, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["train", *line, "steps=2"]) == 0
    said = capsys.readouterr().out
    wanted = ["algo.momentum=0.0", "patience=0", "early.after=0", "early.of=[]"]
    assert told(said, "as before: ") == wanted
    as_expected(home)
    assert gained(home / "run") == AS_BEFORE
    assert dispatch(["train", *line, "steps=3"]) == 0
    assert "made before these keys" not in capsys.readouterr().out  # the second time it knows them
    assert dispatch(["train", *line, "steps=3", "patience=3"]) == 2
    assert "patience: 0 -> 3" in capsys.readouterr().err


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("line", [["resume=run"], ["resume=auto", "hydra.run.dir=run", *OPTIONS]])
def test_a_new_key_that_was_typed_is_a_change(home: Path, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", *line, "steps=2", "algo.momentum=0.9"]) == 2
    assert "algo.momentum: 0.0 -> 0.9" in capsys.readouterr().err


def test_a_sweep_goes_on_with_all_its_jobs_as_before(
    home: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that have begun, and those that have not."""
    assert dispatch(["sweep", *OPTIONS, "steps=1", "seed=0,1", "hydra.sweep.dir=s"]) == 0
    shutil.rmtree(home / "s" / "1")
    status = home / "s" / "0" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "failed"}))
    request.getfixturevalue("newer")
    capsys.readouterr()
    assert dispatch(["sweep", "resume=s"]) == 0
    assert "this sweep was made before these keys existed" in capsys.readouterr().out
    assert [gained(home / "s" / number) for number in "01"] == [AS_BEFORE] * 2
    assert dispatch(["sweep", "resume=s", "patience=3"]) == 2
    assert "job 1: patience: 0 -> 3" in capsys.readouterr().err


def test_an_older_checkpoint_is_judged_and_read(home: Path) -> None:
    forget(home, "rollout.cuda_graphs", "reward.endpoint", "penalty", "algo.value_clip")
    assert dispatch(["eval", "checkpoint=run", "hydra.run.dir=judged"]) == 0
    judged = json.loads((home / "judged" / "eval.json").read_text())
    expected = read_jsonl(home / "run" / "metrics.jsonl")[1]["val/score"]
    assert judged["metrics"]["val/score"] == pytest.approx(expected, abs=1e-3)
    assert judged["config"]["rollout"]["cuda_graphs"] is False
    for command in ("sample", "compare"):
        [config] = compose.plan(command, ["checkpoint=run"], multirun=False, config_dir=None).jobs
        assert (config.rollout.cuda_graphs, config.actor.path) == (False, "./actor")


def test_another_name_is_followed_and_what_meant_nothing_is_dropped(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(home, "algo.steps_per_iteration", put={"algo.refresh_reference": 0, "algo.nothing": None})
    assert dispatch(["train", "resume=run", "steps=2"]) == 0
    said = capsys.readouterr().out
    assert told(said, "as before: ") == ["algo.steps_per_iteration=0"]
    assert told(said, "gone and meant nothing: ") == ["algo.nothing=null", "algo.refresh_reference=0"]
    as_expected(home)
    assert as_before({"algo": {"refresh_reference": 20}}, Config, {})["algo"]["steps_per_iteration"] == 20


def test_second_words_for_a_key_are_dropped_whatever_they_say() -> None:
    """algo.mu was algo.epochs, algo.iterations was steps over algo.steps_per_iteration: the schema checked both."""
    whole = as_before({"algo": {"mu": 4, "epochs": 4, "iterations": 2, "steps_per_iteration": 3}}, Config, {})
    assert (whole["algo"]["epochs"], whole["algo"]["steps_per_iteration"]) == (4, 3)
    assert not whole["algo"].keys() & {"mu", "iterations"}


def test_a_key_that_meant_something_and_is_gone_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget(home, put={"algo.twist": 0.5})
    for argv in (["train", "resume=run"], ["eval", "checkpoint=run"]):
        assert dispatch(argv) == 2
        said = capsys.readouterr().err
        assert "algo.twist=0.5" in said
        assert "go on with the release that made the run" in said


class Part(Section):
    name: str
    weight: float = 1.0
    unit: Annotated[str, Before("words")]


class Parts(Section):
    one: Annotated[Part | None, Before(None)]
    two: Annotated[Part, Before({"name": "none"})]
    named: dict[str, Part]
    listed: list[Part] | Part


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_sections_within_sections_are_made_whole(unit: str) -> None:
    """In lists and under names too; `today` serves only keys of which the schema says nothing."""
    a, b = {"name": "a", "unit": unit}, {"name": "b", "unit": unit}
    today = {"one": a, "two": a, "named": {"x": a}, "listed": [a]}
    whole = as_before({"named": {"x": {"name": "b"}, "y": b}, "listed": [{"name": "b"}, a]}, Parts, today)
    assert whole == {
        "one": None,
        "two": {"name": "none", "weight": 1.0, "unit": "words"},
        "named": {"x": {"name": "b", "weight": 1.0, "unit": "words"}, "y": b | {"weight": 1.0}},
        "listed": [{"name": "b", "weight": 1.0, "unit": "words"}, a | {"weight": 1.0}],
    }
    assert validate(whole, Parts).named["y"].unit == unit
    assert changed({"named": {"x": a}, "listed": []}, validate(whole, Parts)).keys() >= {"named.x.name", "listed"}
    with pytest.raises(UserError, match="twist=1"):
        as_before({"named": {"x": a | {"twist": 1}}}, Parts, today)
