"""The command line: what is refused, with which message and exit code; what composes."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_cli.cli import COMMANDS, dispatch
from rlhf_cli.config import own_folder
from rlhf_cli.config.arguments import parted, quoted
from rlhf_cli.config.compose import CONF, _onto, difference, plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.faults import _keys
from rlhf_cli.config.flat import flat, nested
from rlhf_cli.config.schema import EvalConfig
from rlhf_cli.config.typed import words as typed_words
from rlhf_cli.internals.hydra_private import OverridesParser

OPTIONS = [
    f"{folder.name}={file.stem}"
    for folder in sorted(CONF.iterdir())
    if folder.is_dir()
    for file in folder.glob("*.yaml")
]


def one(*overrides: str, command: str = "train"):
    return plan(command, ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.startswith("scale=")])
def test_every_option_composes(option: str) -> None:
    needed = {
        "critic=none": ["algo=grpo"],
        "reward=python": ["reward.fn=a:b"],
        "reward=learned": ["reward.path=a/b"],
        "algo=grpo_iterative": ["reward=learned", "reward.path=a/b"],
    }.get(option, [])
    assert one(option, *needed)


@pytest.mark.parametrize("scale", ["auto", "mini", "full"])
@pytest.mark.parametrize(
    "command", ["train", "eval", "sample", "data", "models", "reward-train", "probe", "compare", "doctor"]
)
def test_every_command_composes_at_every_scale(command: str, scale: str) -> None:
    job = plan(command, [f"scale={scale}"], multirun=False, config_dir=None).jobs[0]
    assert job.scale in ("mini", "full")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.epsilon=-1"], "greater than 0"),
        (["+algo.epsilonn=1"], "Did you mean algo.epsilon?"),
        (["+lr=1e-4"], "Did you mean optim.actor_lr?"),
        (["algo=grpo", "algo.group_size=1"], "at least 2"),
        (["rollout.batch_size=63"], "try rollout.batch_size=64"),
        (["algo=grpo", "rollout.batch_size=60"], "algo.group_size=8"),
        (["critic=none"], "needs a critic"),
        (["data.min_words=9"], "above data.max_words"),
        (["val.prompts=301"], "data.test=300"),
        (["reward=python"], "reward.fn must be given"),
        (["data.train=100"], "multiple of 3"),
        (["algo=grpo_iterative"], "rlhf reward-train"),
        (["algo.retrain_epochs=1"], "needs algo=grpo_iterative"),
    ],
)
def test_contradictions_are_refused_with_the_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        one(*overrides)


@pytest.mark.parametrize(
    "argv",
    [
        ["trian"],
        ["train", "algo.epsilonn=1"],
        ["train", "reward=robert"],
        ["train", "-m", "algo.beta=0.1,-1"],
        ["eval", "checkpoint=nowhere"],
        ["train", "resume=nowhere"],
        ["train", "--steps", "10"],
    ],
)
def test_user_errors_exit_with_2_and_no_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(argv) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_key_is_explained_and_the_line_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", "reward=learned", "steps=3"]) == 2
    said = capsys.readouterr().err
    assert "(its folder: <run>/reward_model): rlhf train reward=learned steps=3 reward.path=…" in said


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is glibc's to keep")
@pytest.mark.skipif(any(name.startswith("MALLOC_") for name in os.environ), reason="set up by hand")
def test_freed_memory_is_used_again() -> None:
    code = """
import resource, torch
from rlhf_cli.engine.device import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults(); keep_freed_memory(); faults(); faults(); print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < 100, f"{before} page faults before, {after} after"


@pytest.mark.parametrize(
    ("line", "wanted"), [("rlhf re", "reward-train report"), ("rlhf train algo=grp", "algo=grpo algo=grpo_iterative")]
)
def test_completion_knows_commands_and_options(
    line: str, wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    with suppress(SystemExit):
        assert dispatch(["-sc", "query=bash"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == wanted


def test_a_text_with_an_equals_sign_is_no_override() -> None:
    assert parted("sample", ["A = b: what?", "steps=1"]) == (["steps=1"], ["A = b: what?"])
    assert parted("sample", ["a=b"]) == (["a=b"], [])


@pytest.mark.parametrize(
    "text",
    [
        "what a \\o/ movie",
        "it cost ${10}",
        "+1 would watch",
        "~ so-so",
        "- dull",
        "",
        "a, b [c]",
        "don't",
        "50% = half",
    ],
)
def test_a_word_is_text_whatever_is_in_it(text: str) -> None:
    assert parted("probe", ["--config-dir", "x", text, "seed=1"]) == (["--config-dir", "x", "seed=1"], [text])


@pytest.mark.parametrize("words", [["a=b"], ["~so", "--multirun"], ["--"]])
def test_behind_two_dashes_everything_is_text(words: list[str]) -> None:
    assert parted("sample", ["seed=1", "--", *words]) == (["seed=1"], words)


@pytest.mark.parametrize(
    ("typed", "hydras"),
    [
        ("data.source=~/films", "data.source='~/films'"),
        ("data.source=~/a,~/b", "data.source='~/a','~/b'"),
        ("hydra.run.dir=~/run", "hydra.run.dir='/home/ann/run'"),
        ("hydra.sweep.dir='~/s'", "hydra.sweep.dir='/home/ann/s'"),
        ("data.source=~films", "data.source='~films'"),
    ],
)
def test_a_home_folder_is_typed_without_quotes(typed: str, hydras: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's grammar takes no ~ without them, and would make a folder of that name."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert parted("train", [typed]) == ([hydras], [])
    assert parted("report", ["~/runs"]) == ([], ["~/runs"])


@pytest.mark.parametrize("value", ["été", "it's", "a&b.csv", "a=b.csv", "Das ist gut!", "ü/x #1"])
def test_a_text_that_hydras_grammar_cannot_read_needs_no_quotes(value: str) -> None:
    [key], _ = parted("train", [f"notes={value}"])
    assert OverridesParser.create().parse_overrides([key])[0].value() == value
    assert parted("train", ["tags=[a,b", "seed=1,2"])[0] == ["tags=[a,b", "seed=1,2"]  # a slip stays one


def test_a_text_is_read_as_utf8_whatever_the_locale_made_of_it() -> None:
    assert parted("sample", ["gr\udcc3\udcbcn"]) == ([], ["grün"])
    with pytest.raises(UserError, match="this is not UTF-8"):
        parted("sample", ["gr\udcfcn"])


def test_nothing_of_a_command_line_is_left_for_the_next(tmp_path: Path) -> None:
    assert dispatch(["sample", "some words", "scale=nothing", "--config-dir", str(tmp_path)]) == 2
    assert typed_words == []
    assert own_folder._first == []


def test_flags_stand_anywhere() -> None:
    assert parted("train", ["seed=1", "--config-dir=a b"]) == (["--config-dir=a b", "seed=1"], [])
    assert parted("train", ["scale=mini", "--multirun", "seed=0,1"]) == (["--multirun", "scale=mini", "seed=0,1"], [])
    assert parted("eval", ["RUN", "--config-dir", "cfg"]) == (["--config-dir", "cfg"], ["RUN"])
    assert parted("train", ["+a.b=1", "~penalty", "algo@x=ppo"]) == (["+a.b=1", "~penalty", "algo@x=ppo"], [])


@pytest.mark.parametrize(
    "text", ["a b", "it's", "C:\\x", "end\\", "\\'", "${x}", "\\${x}", "ü, =(c) [d] & #e {f}", '"', ""]
)
def test_what_is_quoted_comes_out_of_hydras_grammar_as_it_was(text: str) -> None:
    value = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])[0].value()
    assert OmegaConf.to_container(OmegaConf.create({"key": str(value)}), resolve=True) == {"key": text}


def test_a_sweeps_keys_are_known_and_a_missing_model_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["experiment=sweep_beta", "actor.path=/nowhere/model", f"hydra.run.dir={tmp_path / 'run'}"]
    assert dispatch(["train", *options]) == 2
    assert "actor.path=/nowhere/model: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert plan("train", options[:1], multirun=False, config_dir=None).sweeps == ("algo.beta", "seed")
    assert plan("train", [], multirun=False, config_dir=None).sweeps == ()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from rlhf_cli.cli import dispatch; dispatch(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rlhf train --cfg job" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_a_report_imports_no_torch() -> None:
    code = "import sys, rlhf_cli.report.page, rlhf_cli.report.sections, rlhf_cli.report.runs, rlhf_cli.runs.status"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n"


def test_flat_and_nested_are_inverse() -> None:
    values = {"a": {"b": {"c": 1}, "d": None}, "e": [1]}
    assert nested(flat(values)) == values


def test_only_some_keys_may_change_on_resume() -> None:
    saved = {"steps": 10, "algo": {"beta": 0.1}, "val": {"every": 5}, "trust_config": False, "profile_step": None}
    new = {"steps": 20, "algo": {"beta": 0.2}, "val": {"every": 1}, "trust_config": True, "profile_step": 12}
    assert difference(saved, new) == {"algo.beta": (0.1, 0.2)}


def test_critic_defaults_to_the_actors_model_and_grpo_has_none() -> None:
    assert one("actor=qwen_base").critic.name == "qwen_base"
    assert one("algo=grpo").critic.name == "none"


def test_a_sweep_is_expanded_and_checked() -> None:
    jobs = plan("train", ["scale=mini", "algo.beta=0.1,0.2", "seed=1,2"], multirun=True, config_dir=None)
    assert [(j.algo.beta, j.seed) for j in jobs.jobs] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]


def test_every_key_is_commented() -> None:
    for file in CONF.rglob("*.yaml"):
        if file.parent.name in ("scale", "experiment"):
            continue  # they set keys that are explained where they live
        for line in file.read_text().split("\nhydra:")[0].splitlines():
            key = line.split("#")[0].strip()
            if key and not key.startswith("-") and key not in ("defaults:",) and not key.endswith(":"):
                assert "#" in line, f"{file.name}: {line}"


def names_read(code: str) -> set[str]:
    """Attributes, and whole strings that are names."""
    return set(re.findall(r"\.(\w+)", code)) | set(re.findall(r"[\"'](\w+)[\"']", code))


def test_a_part_of_a_name_is_no_reader() -> None:
    assert names_read("config.penalty.name, row['numbers']") == {"penalty", "name", "numbers"}


def test_every_key_is_read_somewhere() -> None:
    """The checks of the schema are no readers: a key that only they look at does nothing."""
    rooms = (p for p in Path(CONF.parent / "rlhf_cli").rglob("*.py") if not p.name.endswith("schema.py"))
    read = names_read("\n".join(p.read_text() for p in rooms))
    handed_over = (".endpoint.", ".form.")  # whole, as keyword arguments
    for key in _keys(EvalConfig):
        if any(section in key for section in handed_over):
            continue
        assert key.rpartition(".")[2].replace("lambda", "lam") in read, f"{key} is read by nothing"


def test_miniature_scale_never_asks_the_hub() -> None:
    assert one().data.source == "generated"
    assert OmegaConf.load(CONF / "data" / "short_prefix.yaml").source == "imdb"


def test_a_reader_that_goes_away_stops_nothing() -> None:
    code = "import sys; from rlhf_cli.cli import main; sys.argv = ['rlhf', '--help']; main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("configs", "completion")])
def test_the_help_of_a_command_explains_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the words of the option that was asked for."""
    if command == "sweep":
        command = "train"
    groups = [] if command in ("report", "runs") else ["algo=grpo"]
    assert dispatch([command, *groups, "--help"]) == 0
    shown = capsys.readouterr().out
    before, _, after = shown.partition("== Groups")
    keys = (before.partition("== Keys")[2] + after.partition("== Keys")[2]).splitlines()
    bare = [line for line in keys if re.fullmatch(r" {0,8}[\w']+: \S.{0,30}", line) and "  " not in line.strip()]
    assert bare == []
    assert not groups or re.search(r"beta: 0.04 +weight of the KL, as in the paper\n", shown)
    assert f"\nrlhf {command}" in shown.partition("== Examples")[2].partition("== Keys")[0]


def test_the_help_shows_a_commands_own_keys_before_those_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["compare", "scale=small", "--help"]) == 0
    own, _, shared = capsys.readouterr().out.partition(
        "== Keys that it shares with rlhf train, as they stand at scale=small"
    )
    assert all(f"\n{key}: " in own for key in ("checkpoint", "prefixes", "against", "fail_below"))
    assert "\nsteps: 48" in shared
    assert "fine_tune:" in shared
    assert dispatch(["train", "--help"]) == 0
    assert "\ncheckpoint:\n" in capsys.readouterr().out  # a run's section, not the checkpoint that eval judges


def test_a_typed_option_replaces_what_was_saved_of_its_group() -> None:
    saved = {"seed": 3, "reward": {"name": "mix", "every_tokens": 8, "target": "positive"}, "algo": {"beta": 0.5}}
    values = {"seed": 0, "reward": {"name": "vader", "target": "negative"}, "algo": {"beta": 0.03, "gamma": 1.0}}
    whole = _onto(saved, values, ["reward=vader"])
    assert whole == {"seed": 3, "reward": {"name": "vader", "target": "negative"}, "algo": {"beta": 0.5, "gamma": 1.0}}
    leaf = _onto(saved, values, ["reward.target=negative"])
    assert leaf["reward"] == {"name": "mix", "every_tokens": 8, "target": "negative"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "experiment=smoek"], "Did you mean experiment=smoke?"),
        (["sweep", "experiment=smoke,nope"], "experiment=nope: there is no such option"),
        (["sweep", "seed=0,0"], "job 1 of the sweep is job 0 once more"),
        (["train", "seed=99999999999999999999"], "seed=99999999999999999999"),
        (["train", "algo=null"], "this is no option of algo"),
        (["train", "--config-dir", "/nowhere"], "--config-dir /nowhere: there is no such folder"),
        (["train", "~steps"], "steps is missing"),
        (["train", "reward.fn=a:b"], "reward.fn=a:b is for reward=python"),
        (["compare", "a", "b", "c"], "takes two runs"),
        (["train", "data.source=/dev/null"], "data.source=/dev/null"),
    ],
)
def test_what_an_attack_found_is_one_message(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "hydra.sweep.dir" if argv[0] == "sweep" else "hydra.run.dir"
    where = [] if "run.dir" in argv[-1] or argv[0] == "compare" else [f"{place}={tmp_path / 'out'}"]
    mini = [] if argv[0] == "compare" else ["scale=mini", "tracking=none"]
    assert dispatch([*argv, *mini, *where]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_prompts_are_built_without_a_look_at_the_validations() -> None:
    planned = plan("data", ["scale=mini", "data.test=30"], multirun=False, config_dir=None)
    assert planned.jobs[0].data.test == 30
    with pytest.raises(UserError, match=r"val\.prompts=150 but data\.test=30"):
        plan("train", ["scale=mini", "data.test=30"], multirun=False, config_dir=None)
