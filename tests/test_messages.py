"""What a wrong value is told: its key as one types it, what is wanted, what to type. And what Hydra's words become."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli.cli import dispatch
from rlhf_cli.config import schema
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.faults import PATTERNS


def said_of(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as refused:
        plan("train", ["scale=mini", *overrides], multirun=multirun, config_dir=None)
    return str(refused.value).partition("The configuration is wrong:\n  ")[2] or str(refused.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("algo.beta=null", "algo.beta=null: wanted is a number"),
        ("steps=true", "steps=true: wanted is a number"),
        ("steps=1.5", "steps=1.5: wanted is a whole number"),
        ("device=gpu", "device=gpu: wanted is cpu, cuda, cuda:0 (or the number of another GPU) or auto"),
        ("objective=score", "objective=score: wanted is a metric, as val/score or train/reward"),
        ("precision=fp16", "precision=fp16: wanted is one of auto, fp32, bf16"),
        ("name=2024", "name=2024: wanted is a text; in quotes: name=\"'2024'\""),
        ("name=[a]", "name=[a]: wanted is a text"),
        ("tags=[a,2024]", "tags=[a,2024]: wanted is a text; in quotes: tags=\"['a','2024']\""),
        ("tags=2024", "tags=2024: wanted is a list; in brackets: tags=\"['2024']\""),
        ("tags=null", "tags=null: wanted is a list; of nothing: tags=[]"),
        ("stop.on_hacking=maybe", "wanted is true or false or one of warn, raise_beta, rollback, stop"),
        ("penalty.n=x", "penalty.n=x: wanted is a whole number or a list"),
        ("penalty=None", "penalty.weight=, penalty.n=, penalty.level=; without it: penalty.weight=0"),
        ("actor.lora=x", "one of them is wanted: actor.lora.rank=, actor.lora.alpha="),
        ("weights=x", "this is what a run saves for itself; leave it out"),
    ],
)
def test_a_wrong_value(typed: str, said: str) -> None:
    assert said in said_of(typed)
    assert "\n" not in said_of(typed)  # one fault, one line


def test_what_is_told_to_be_typed_is_taken() -> None:
    job = plan("train", ["scale=mini", "tags=['2024','a']", "name='2024'"], multirun=False, config_dir=None).jobs[0]
    assert (job.tags, job.name) == (["2024", "a"], "2024")


def test_every_regular_expression_of_the_schema_has_words() -> None:
    code = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    found = {node.value.value for node in ast.walk(code) if isinstance(node, ast.keyword) and node.arg == "pattern"}
    assert found == set(PATTERNS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "+algo.beta=0.1"], "already; type it without +: algo.beta=…"),
        (["train", "~algo.betta"], "there is no such key to leave out"),
        (["train", "actor=[qwen_base,qwen_instruct]"], "a run of each: rlhf sweep actor=…,…"),
        (["train", "experiment=null"], "leave experiment= out"),
        (["sweep", "experiment=glob(zz*)"], "there is no such experiment"),
        (["sweep", "algo=glob(zz*)"], "this sweep has no job"),
        (["sample", "a=b"], "a text that looks like a key: rlhf sample … -- 'the text'"),
    ],
)
def test_hydras_words(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch([*argv, "scale=mini"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_options_of_a_group_are_chosen_by_hydras_functions() -> None:
    names = {job.algo.name for job in plan("train", ["algo=glob(ppo*)"], multirun=True, config_dir=None).jobs}
    assert {"ppo", "ppo_kl", "ppo_ptx"} <= names
    assert not {"grpo"} & names


@pytest.mark.parametrize("typed", ["sweep_beta,smoke", "choice(sweep_beta,smoke)", "glob(s*_beta)"])
def test_an_experiment_brings_its_own_sweep_however_it_is_named(typed: str) -> None:
    planned = plan("train", ["scale=mini", f"experiment={typed}"], multirun=True, config_dir=None)
    alone = plan("train", ["scale=mini", "experiment=sweep_beta"], multirun=True, config_dir=None)
    assert len(planned.jobs) == len(alone.jobs) + ("smoke" in typed)


def test_a_users_module_does_not_hide_the_standard_librarys(tmp_path: Path) -> None:
    """`python -m` puts the current folder before everything else."""
    (tmp_path / "statistics.py").write_text("def fn(prompts, responses): return [0.0 for _ in responses]\n")
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "rlhf: runs=nowhere: there is no such folder\n")
