"""rlhf configs: what ships is listed, shown and copied, and a copy that was edited is what runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import SMALL

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import CONF, plan
from rlhf_cli.config.own_folder import first, of_engine, searchpath
from rlhf_cli.config.shipped import about, shipped


@pytest.fixture(autouse=True)
def _no_folder_of_ones_own():
    yield
    first(None)


def test_every_shipped_config_is_listed_with_a_line_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["configs", "list"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {config.option} " in said for config in shipped())
    assert {config.name for config in shipped()} == {
        f.relative_to(CONF).with_suffix("").as_posix() for f in CONF.rglob("*.yaml")
    }
    assert [config.name for config in shipped() if len(config.about) < 10] == []
    assert dispatch(["configs", "list", "gold"]) == 0
    assert "qwen_base" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# @package _global_\n# One thing. And more.\nkey: 1", "One thing."),
        (
            "# Dr. GRPO (2025): a sentence over\n# two lines\n#   rlhf train\n",
            "Dr. GRPO (2025): a sentence over two lines",
        ),
        ("name: a   # the name\nb: 1 # other", "the name"),
        ("name: a\n", ""),
    ],
)
def test_a_line_about_a_config(text: str, line: str) -> None:
    assert about(text) == line


@pytest.mark.parametrize("name", ["algo/grpo", "algo=grpo", "grpo", "algo/grpo.yaml"])
def test_a_config_is_shown_with_its_comments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["configs", "show", name]) == 0
    assert (CONF / "algo" / "grpo.yaml").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lst"], "Did you mean list?"),
        (["list", "alog"], "Did you mean algo?"),
        (["list", "a", "b"], "takes one group"),
        (["show"], "is missing"),
        (["show", "grppo"], "Did you mean grpo?"),
        (["show", "algo/rlooo"], "Did you mean algo/rloo?"),
        (["show", "qwen_base"], "actor/qwen_base or critic/qwen_base"),
        (["show", "prompt"], "prompt/chat, prompt/plain"),
        (["copy"], "is missing"),
        (["copy", "out=there"], "a folder is wanted"),
        (["copy", "mine", "grppo"], "Did you mean grpo?"),
        (["copy", "file"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_one_message_and_writes_nothing(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert dispatch(["configs", *argv]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "algo").mkdir()
    mine = tmp_path / "algo" / "grpo.yaml"
    mine.write_text("mine")
    assert dispatch(["configs", "copy", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert not (tmp_path / "train.yaml").exists()


def test_a_whole_copy_that_was_edited_is_what_is_composed(tmp_path: Path) -> None:
    assert dispatch(["configs", "copy", str(tmp_path / "my own")]) == 0
    base = tmp_path / "my own" / "train.yaml"
    before = base.read_text()
    base.write_text(before.replace("batch_size: 64 ", "batch_size: 40 "))
    assert base.read_text() != before
    job = plan("train", ["scale=mini"], multirun=False, config_dir=str(base.parent)).jobs[0]
    assert job.rollout.batch_size == 40
    assert plan("train", ["scale=mini"], multirun=False, config_dir=None).jobs[0].rollout.batch_size == 64


def test_a_copied_option_runs_alone_and_in_every_job_of_a_sweep_that_goes_on(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    assert dispatch(["configs", "copy", str(own), "algo/grpo"]) == 0
    option = own / "algo" / "grpo.yaml"
    option.write_text(option.read_text().replace("beta: 0.04", "beta: 0.77"))
    line = ["--config-dir", str(own), *SMALL, "algo=grpo", "steps=0"]
    assert dispatch(["train", *line, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "beta: 0.77" in (tmp_path / "run" / "config.yaml").read_text()
    assert dispatch(["sweep", *line, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    (tmp_path / "sweep" / "1" / "status.json").unlink()
    first(None)
    assert dispatch(["sweep", f"resume={tmp_path / 'sweep'}"]) == 0
    for job in "01":
        assert "beta: 0.77" in (tmp_path / "sweep" / job / "config.yaml").read_text()


@pytest.mark.parametrize("folder", ["/a/b", "/it's/here", "/a b/${c}"])
def test_a_sweep_remembers_its_folder(folder: str) -> None:
    assert of_engine(["hydra.x=1", searchpath(folder)]) == folder
    assert of_engine(["hydra.x=1"]) is None


def test_configs_needs_no_torch() -> None:
    code = "import sys; from rlhf_cli.cli import dispatch; dispatch(['configs', 'list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
