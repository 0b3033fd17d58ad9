"""The pages against the code: what they name is there, and what is there they name."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli.cli import COMMANDS
from rlhf_cli.config.compose import plan
from rlhf_cli.config.stop_schema import TRAIN
from rlhf_cli.config.val_schema import OWN
from rlhf_cli.data.reviews import SENTIMENTS
from rlhf_cli.evaluation.hacking import FULL
from rlhf_cli.evaluation.signs import EDITS, text_panel
from rlhf_cli.runs.hacking_watch import DRIFT

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"(?:train|val|hacking|time|throughput|memory)/[a-z<][\w<>/]*")
FAMILIES = {
    "train/<name>", "val/<name>", "hacking/<name>", "hacking/<name>_drift", "hacking/index_<name>", "time/<name>_s",
    "val/score/<name>",
}  # fmt: skip
"""How the code writes names whose parts stand elsewhere: in TRAIN, OWN, the panel, the clock."""
CONFIGURED = {"val/penalty", "val/source"}
"""Of OWN: only with a part."""


def written() -> set[str]:
    """Every metric that stands in the package as a string; what an f-string fills in is <name>."""
    found: set[str] = set()
    for file in (ROOT / "rlhf_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values=parts):
                    text = "".join(p.value if isinstance(p, ast.Constant) else "<name>" for p in parts)
                case ast.Constant(value=str(text)):
                    pass
                case _:
                    continue
            found |= {text} if NAME.fullmatch(text) else set()
    return found


def logged() -> set[str]:
    panel = [*text_panel(["a"]), *(f"kept/{edit}" for edit in EDITS)]
    return (
        {name for name in written() if name not in FAMILIES and name[-1] not in "/_"}
        | {f"train/{name}" for name in TRAIN}
        | {f"val/{name}" for name in OWN} - CONFIGURED
        | {"val/gold_score/<name>", *(f"val/score/{name}" for name in SENTIMENTS)}
        | {f"hacking/{name}" for name in panel}
        | {f"hacking/{name}_drift" for name in DRIFT}
        | {f"hacking/index_{end}" for end in ("low", "high")}
        | {f"time/{phase}_s" for phase in ("rollout", "score", "forward", "update")}
    )


def documented() -> set[str]:
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(.*?)`", row)}


def test_every_metric_is_documented_and_no_other() -> None:
    assert documented() == logged()


def test_every_sign_of_hacking_is_named_in_its_row() -> None:
    row = next(
        line for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if "hacking/sign/<name>" in line
    )
    assert set(FULL) <= set(re.findall(r"`(.*?)`", row))


def commands(page: str) -> list[list[str]]:
    """The words of every `rlhf …` of a page, in a line of its own or in a sentence; comments left out."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.findall(r"^    (rlhf .*)$", text, re.MULTILINE) + re.findall(r"`(rlhf [^`]*)`", text)
    return [shlex.split(" ".join(line.split()), comments=True)[1:] for line in lines]


def runs_without_hydra(words: list[str]) -> bool:
    return words[0] in ("runs", "configs", "completion", "doctor") or any("<" in w or "…" in w for w in words)


@pytest.mark.parametrize("page", ["papers.md", "quickstart.md", "faq.md", "rewards.md", "data.md", "full_scale.md"])
def test_every_command_of_a_page_composes(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a <run> stands for a folder that is not there, only the command is looked up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text("def score(prompts, responses):\n    return [0.0 for _ in responses]\n")
    (tmp_path / "reviews.csv").write_text("text,label\n")
    told = [words for words in commands(page) if words]
    assert len(told) > 3
    for command, *words in told:
        assert command in COMMANDS, command
        if not runs_without_hydra([command, *words]):
            typed = [word for word in words if "=" in word]
            plan("train" if command == "sweep" else command, typed, multirun=command == "sweep", config_dir=None)


def test_the_notebook_runs_and_shows_what_it_did(tmp_path: Path) -> None:
    """Every cell, with two steps instead of forty; what stands below its cells was written by the same code."""
    cells = json.loads((ROOT / "docs" / "demo.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells[2:] if cell["cell_type"] == "code")
    script = "\n".join(code).replace('"steps=40"', '"debug=fast"')
    assert "debug=fast" in script
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "done: outputs/notebook" in done.stdout
    assert "step   2" in done.stdout


def test_every_test_that_a_page_names_is_there() -> None:
    here = ROOT / "tests"
    named = []
    for page in (ROOT / "docs").glob("*.md"):
        file = ""
        for word in re.findall(r"`((?:test_\w+\.py)?(?:::test_\w+)?)`", page.read_text(encoding="utf-8")):
            path, _, name = word.partition("::")
            file = path or file
            named.append((file, name))
    missing = [
        (file, name)
        for file, name in named
        if file and (not (here / file).is_file() or f"def {name}" not in (here / file).read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    assert missing == []
