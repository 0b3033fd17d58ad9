"""Text from models is inert, saved configs run no code unless told to, no secret is written anywhere."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.runs import train
from rich.console import Console

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.flat import flat, nested
from rlhf_cli.runs.checkpoint import load_trainer
from rlhf_cli.tracking.console import ConsoleTracker
from rlhf_cli.tracking.text import harmless, printable

pytestmark = pytest.mark.usefixtures("cache")

NASTY = "\x1b[2J\x1b[H\x1b]0;owned\x07[bold red]x[/bold red]\u202e\r\n<script>alert(1)</script>\x9b31m"


def test_printable_and_harmless_leave_nothing_that_moves_a_cursor() -> None:
    for clean in (printable(NASTY), harmless(NASTY)):
        assert not set(clean) & set("\x1b\x07\r\x9b\u202e")
        assert "[bold red]" in clean  # shown as it stands, never as markup
    assert "\n" not in printable(NASTY)
    assert harmless("a\nb") == "a\nb"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_shows_a_nasty_response_as_text(terminal: bool) -> None:
    out = io.StringIO()
    tracker = ConsoleTracker(2, Console(file=out, force_terminal=terminal, width=200, color_system=None))
    row = {"prefix": NASTY, "response": NASTY, "class": NASTY, "score": 0.5}
    tracker.samples(0, [row])
    tracker.log(0, {"val/score": 0.5})
    tracker.message(NASTY)
    tracker.finish("done")
    shown = out.getvalue()
    assert "[bold red]x[/bold red]" in shown
    for code in ("\x1b[2J\x1b[H\x1b]", "\x07", "\x9b", "\u202e"):
        assert code not in shown


def test_a_message_about_a_nasty_file_is_inert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    (tmp_path / "r.jsonl").write_text(json.dumps({NASTY: 1}) + "\n")
    assert train(tmp_path / "run", f"data.source={tmp_path / 'r.jsonl'}") == 2
    error = capsys.readouterr().err
    assert "no column 'text'" in error
    assert "\x1b" not in error


def test_the_prompts_of_a_nasty_file_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset, DatasetDict

    from rlhf_cli.data.prefixes import show

    rows = [{"prefix": NASTY + c, "class": c, "words": 4} for c in ("negative", "neutral", "positive")]
    out = io.StringIO()
    split = Dataset.from_list(rows)
    show(DatasetDict(train=split, test=split), Console(file=out, width=300, color_system=None))
    assert "[bold red]" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_saved_config_runs_no_code_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "theirs.py").write_text(
        f"open({str(marker)!r}, 'a').write('x')\ndef fn(prompts, responses): return [0.5] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    assert train(run, "reward=python", "reward.fn=theirs:fn", "gold=none", "steps=1") == 0
    sys.modules.pop("theirs")
    marker.unlink()
    capsys.readouterr()
    for command in ("eval", "sample", "compare"):
        assert dispatch([command, f"checkpoint={run}", f"hydra.run.dir={tmp_path / command}"]) == 2
        error = capsys.readouterr().err
        assert "reward.fn=theirs:fn" in error
        assert "trust_config=true" in error
    assert dispatch(["train", f"from={run}", f"hydra.run.dir={tmp_path / 'from'}"]) == 2
    assert "trust_config=true" in capsys.readouterr().err
    assert not marker.exists()
    other = [f"checkpoint={run}", "reward=vader", f"hydra.run.dir={tmp_path / 'other'}"]
    assert dispatch(["eval", *other]) == 0
    assert not marker.exists()
    trusted = [f"checkpoint={run}", "trust_config=true", f"hydra.run.dir={tmp_path / 'trusted'}"]
    assert dispatch(["eval", *trusted]) == 0
    assert marker.exists()


@pytest.mark.parametrize(
    ("key", "named", "without"),
    [("algo.loss", "theirs:fn", "algo.loss=null"), ("val.metrics", ["theirs:fn"], "val.metrics=[]")],
)
def test_code_that_a_foreign_config_names_is_refused_by_all_that_read_it(
    key: str, named: Any, without: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it says itself that it is to be trusted; typed by the user it is the user's own."""
    planned = plan("train", ["scale=mini", "reward=vader", "gold=none"], multirun=False, config_dir=None)
    foreign = flat(planned.jobs[0].model_dump(by_alias=True)) | {key: named, "trust_config": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested(foreign)))
    for command, place in (
        ("eval", "checkpoint"),
        ("sample", "checkpoint"),
        ("compare", "checkpoint"),
        ("train", "from"),
    ):
        assert dispatch([command, f"{place}={tmp_path}", f"hydra.run.dir={tmp_path / command}"]) == 2
        said = capsys.readouterr().err
        assert f"names code or a key: {key}={named}" in said
        assert without in said
        trusted = plan(command, [f"{place}={tmp_path}", "trust_config=true"], multirun=False, config_dir=None).jobs[0]
        assert trusted.trust_config
        assert plan(command, [f"{place}={tmp_path}", without], multirun=False, config_dir=None).jobs


def test_a_trainer_state_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    for write in (lambda f: torch.save(Evil(), f), lambda f: f.write_bytes(pickle.dumps(Evil()))):
        write(tmp_path / "trainer.pt")
        with pytest.raises(UserError, match="plain tensors"):
            load_trainer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_no_secret_of_the_environment_lands_in_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = {name: f"{name.lower()}0123456789abcdef0123456789" for name in ("HF_TOKEN", "OPENAI_API_KEY")}
    secrets["WANDB_API_KEY"] = "0123456789abcdef" * 2 + "01234567"
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert train(tmp_path, "tracking=offline", "steps=1") == 0
    import wandb

    wandb.teardown()
    said = "".join(capfd.readouterr())
    for value in secrets.values():
        assert value not in said
        holders = [f for f in tmp_path.rglob("*") if f.is_file() and value.encode() in f.read_bytes()]
        assert not holders


def test_a_key_in_a_url_is_refused_before_it_is_saved() -> None:
    judge = ["scale=mini", "reward=judge", "reward.endpoint.model=m"]
    for url in ("https://user:key@host/v1", "https://host/v1?api_key=abc"):
        with pytest.raises(UserError, match="key_env"):
            plan("train", [*judge, f"reward.endpoint.url='{url}'"], multirun=False, config_dir=None)
