"""rlhf completion install: what it writes, once, and that bash reads it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rlhf_cli.cli import dispatch
from rlhf_cli.commands.completion import MARK, script


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    for name in ("XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("shell", "startup", "place"),
    [
        ("bash", ".bashrc", ".config/rlhf/completion.bash"),
        ("zsh", ".zshrc", ".config/rlhf/completion.zsh"),
        ("fish", None, ".config/fish/completions/rlhf.fish"),
    ],
)
def test_it_is_installed_once_and_says_where(
    shell: str, startup: str | None, place: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if startup:
        (home / startup).write_text("alias a=b")
    assert dispatch(["completion", "install", shell]) == 0
    assert f"wrote {home / place}" in capsys.readouterr().out
    written = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    assert "rlhf train" not in written[home / place]
    assert len(written) == (2 if startup else 1)
    if startup:
        assert written[home / startup].startswith(f"alias a=b\n{MARK}\n[ -f '{home / place}' ]")
    assert dispatch(["completion", "install", shell]) == 0
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == written


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_with_what_it_reads_at_its_start(home: Path) -> None:
    assert dispatch(["completion", "install"]) == 0
    asked = subprocess.run(
        ["bash", "-c", f". {home / '.bashrc'}; complete -p rlhf"], capture_output=True, text=True, check=True
    )
    assert "hydra_bash_completion rlhf" in asked.stdout


def test_zsh_reads_the_script_of_bash() -> None:
    assert script("zsh", dispatch).startswith("autoload -Uz bashcompinit")
    assert script("zsh", dispatch).endswith(script("bash", dispatch))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["install", "tcsh"], "Allowed: bash, zsh, fish"),
        (["instal"], "rlhf completion install"),
        (["show", "bsh"], "Did you mean bash?"),
    ],
)
def test_what_is_wrong_is_refused(argv: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["completion", *argv]) == 2
    assert said in capsys.readouterr().err
    assert list(home.iterdir()) == []
