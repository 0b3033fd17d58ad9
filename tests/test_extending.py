"""The recipes of docs/extending.md, followed literally: their blocks are applied to a copy of the project."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.bandit import Bandit

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.engine.decoder import KINDS
from rlhf_cli.rewards.scorer import Texts, python_score

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CODE_LINES = 15


@dataclass(frozen=True)
class Block:
    kind: str
    file: str
    lines: list[str]


def recipe(number: int) -> list[Block]:
    """The blocks of a recipe."""
    text = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[number]
    found = re.findall(r"^```(\w+)\n# (\S+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(kind, file, lines.splitlines()) for kind, file, lines in found]


def follow(number: int, root: Path) -> None:
    """Write a recipe's files, and apply its changes, below this folder."""
    for block in recipe(number):
        file = root / block.file
        if block.kind != "diff":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            continue
        before = "\n".join(line[1:] for line in block.lines if line[0] in " -")
        after = "\n".join(line[1:] for line in block.lines if line[0] in " +")
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1, (
            f"docs/extending.md, recipe {number}: {block.file} has changed; not in it: {before}"
        )
        file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, without the shipped weights."""
    shutil.copytree(ROOT / "rlhf_cli", tmp_path / "rlhf_cli", ignore=shutil.ignore_patterns("shipped", "__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def run(project: Path, code: str) -> str:
    """What a program prints that imports the copy."""
    paths = {"PYTHONPATH": f"{project}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, env=dict(**paths, **ENVIRONMENT)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}


def test_every_recipe_is_short() -> None:
    """Lines that one writes: context and what a change replaces are there already."""
    for number in range(1, 6):
        written = [b.lines if b.kind != "diff" else [x for x in b.lines if x[0] == "+"] for b in recipe(number)]
        assert 0 < len([line for lines in written for line in lines if line.strip()]) <= CODE_LINES, number


def test_a_combination_of_choices(tmp_path: Path) -> None:
    follow(1, tmp_path)
    job = plan("train", ["scale=mini", "algo=clipped_rloo"], multirun=False, config_dir=str(tmp_path)).jobs[0]
    assert (job.algo.advantage, job.algo.epsilon_high, job.algo.kl) == ("leave_one_out", 0.28, "loss")
    assert job.critic.name == "none"


def test_a_loss_of_ones_own_solves_the_bandit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(1, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    bandit = Bandit("algo=grpo", "algo.loss=my_loss:loss")
    before, first = bandit.chance(), bandit.step(1)
    assert first["train/ratio_max"] > 1 >= first["train/clipfrac"] == 0
    for number in range(2, 41):
        bandit.step(number)
    assert before < 0.2
    assert bandit.chance() > 0.9


def test_a_loss_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short_loss.py").write_text("def mean(logprobs, old, advantages, mask):\n    return logprobs.mean(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"algo.loss must give one loss per token, \[64, 1\]; it gave \[64\]"):
        Bandit("algo=grpo", "algo.loss=short_loss:mean", "algo.minibatches=1").step(1)
    with pytest.raises(UserError, match=r"algo.loss=short_loss:median: .* \(allowed: module:function"):
        Bandit("algo=grpo", "algo.loss=short_loss:median")


def test_a_reward_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(2, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    score = python_score("my_reward:score")
    assert score(Texts(["", ""], ["", ""], ["a dull film", "a fine one"], [[], []])).tolist() == [1, 0]
    options = ["reward=python", "reward.fn=my_reward:score", f"hydra.run.dir={tmp_path / 'run'}", "--cfg", "job"]
    assert dispatch(["train", "scale=mini", *options]) == 0


def test_a_tracker(project: Path) -> None:
    follow(3, project)
    code = """
from pathlib import Path
from rlhf_cli.config.compose import plan
from rlhf_cli.tracking.trackers import make_trackers
kinds = plan("train", ["scale=mini", "tracking=csv"], multirun=False, config_dir=None).jobs[0].tracking.to
unused = dict.fromkeys(("resume_step", "project", "entity", "name", "group", "run_id"))
trackers = make_trackers(kinds, Path("run"), {}, steps=1, **unused)
trackers.log(0, {"val/score": 0.25})
trackers.finish("done")
"""
    run(project, code)
    assert (project / "run" / "score.csv").read_text() == "0,0.25\n"
    assert (project / "run" / "metrics.jsonl").exists()


def test_a_model_family(project: Path) -> None:
    assert "seed_oss" not in KINDS
    follow(4, project)
    code = """
from pathlib import Path
from helpers.compare import differences
from helpers.tiny_models import make, tokenizer
from rlhf_cli.data.generated import generate_reviews
tokens = tokenizer(Path("tokens"), [r.text for r in generate_reviews(100, seed=0)])
found = differences(make("seed_oss", Path("model"), tokens))
print(found.way, found.numbers < 1e-4, found.gradients < 1e-3)
"""
    assert run(project, code) == "fast True True"


def test_a_sign_in_the_hacking_panel(project: Path) -> None:
    follow(5, project)
    code = """
from rlhf_cli.evaluation.hacking import hacking_index, signs
from rlhf_cli.evaluation.signs import Judged
calm, loud = (["the film was bad" + end] * 4 for end in (".", "!!"))
begun, now = (Judged.of(*said, None, {"perplexity": 3.0}) for said in ((calm, [0.1] * 4), (loud, [0.9] * 4)))
print(signs(now, begun)["shouting"], hacking_index(now, begun, ["shouting"]))
del begun.panel["shouting"]
print("shouting" in signs(now, begun), hacking_index(now, begun, ["shouting"]))
"""
    assert run(project, code) == "1.0 1.0\nFalse 0.0"
