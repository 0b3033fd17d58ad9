"""Machines that are not as usual: no home, another locale, a notebook's matplotlib, folders that cannot be written."""

import ast
import os
import pwd
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.qwen import born
from transformers import Qwen2Config

from rlhf_cli.build.prompt_data import check_fit
from rlhf_cli.cli import _place, dispatch
from rlhf_cli.config.arguments import parted
from rlhf_cli.config.compose import CONF, plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import claimed
from rlhf_cli.config.typed import absolute
from rlhf_cli.internals.hydra_private import get_args_parser
from rlhf_cli.report.figure import drawing
from rlhf_cli.sweeps.sweep import set_id_aside
from rlhf_cli.training.pretraining import Pretraining

PACKAGE = Path(__file__).parents[1] / "rlhf_cli"


def unencoded(code: str) -> list[int]:
    """Lines that open a text file in whatever encoding the locale has."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode and len(mode) < 4 for mode in modes)
        of_os = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "gzip", "webbrowser")
        opens = name in ("read_text", "write_text", "open") and not binary and not of_os
        if opens and not any(keyword.arg == "encoding" for keyword in call.keywords):
            found.append(call.lineno)
    return found


def test_every_text_file_names_its_encoding() -> None:
    assert unencoded(
        "p.read_text()\nopen('x', 'w')\np.open('rb')\np.write_text('x', encoding='utf-8')\nos.open(p)"
    ) == [1, 2]
    read = {
        f: unencoded(f.read_text(encoding="utf-8"))
        for f in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("scripts/*.py")]
    }
    assert {str(file): lines for file, lines in read.items() if lines} == {}


@pytest.mark.parametrize("words", [["train", "--help"], ["configs", "show", "grpo"], ["train", "algo.bäta=1"]])
def test_a_locale_that_knows_no_umlaut_breaks_nothing(words: list[str], tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *words], env={**os.environ, **plain}, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == (2 if "bäta" in words[-1] else 0)
    assert b"Traceback" not in done.stderr


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in passwd, as containers have them."""

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "scale=mini"], "cache_dir=~/.cache/rlhf: this user has no home directory; give cache_dir=<folder>"),
        (["report", "~/runs"], "runs=~/runs: this user has no home directory"),
        (["train", "hydra.run.dir=~/x"], "hydra.run.dir=~/x: this user has no home directory"),
        (["train", "scale=mini", "cache_dir=/tmp/c", "data.source=~/x"], "data.source=~/x: this user has no home"),
        (["completion", "install", "bash"], "this user has no home directory: set HOME, or rlhf completion show bash"),
    ],
)
def test_a_user_without_a_home_is_told_what_to_give(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLHF_CACHE", raising=False)
    assert dispatch(argv) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_text_that_begins_with_a_tilde_is_no_folder() -> None:
    values = {"prefixes": ["~so", "~/x"], "probe": {"texts": ["~"]}, "notes": "~good"}
    assert absolute(values) == values
    with pytest.raises(UserError, match=r"data\.source=~nobody-known/x: this user has no home"):
        absolute({"data": {"source": "~nobody-known/x"}})


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_runs_with_a_cache_elsewhere(tmp_path: Path) -> None:
    planned = plan("train", ["scale=mini", f"cache_dir={tmp_path}"], multirun=False, config_dir=None)
    assert planned.jobs[0].cache_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "here"),
    [
        (["doctor", "scale=mini"], True),
        (["data", "scale=mini"], True),
        (["models", "scale=mini"], True),
        (["sample", "scale=mini", "a film"], True),
        (["runs"], True),
        (["report", "RUN", "out=/tmp/page"], True),
        (["report", "RUN"], False),
        (["train", "scale=mini"], False),
        (["eval", "scale=mini"], False),
    ],
)
def test_commands_that_write_nothing_need_no_folder(line: list[str], here: bool) -> None:
    """They run in a current folder that cannot be written."""
    keys, _ = parted(line[0], line[1:])
    args = get_args_parser().parse_args(keys)
    planned = plan(line[0], args.overrides, multirun=False, config_dir=None)
    assert (_place(planned) == ".") == here


def test_a_command_that_writes_takes_a_name_of_its_own() -> None:
    """Two that start in one second, in one folder, would lose a result."""
    for file in CONF.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if "\n    dir: outputs/" in text:
            assert f"_{file.stem}\n" in text, file.name


def test_a_folder_is_one_commands_alone(tmp_path: Path) -> None:
    """Also of commands that ask in the same instant."""
    wanted = str(tmp_path / "12-00-00_eval")
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: claimed(wanted), range(16)))
    assert len(set(places)) == 16
    assert {Path(place).name for place in places} == {"12-00-00_eval", *(f"12-00-00_eval_{n}" for n in range(2, 17))}


def test_what_is_saved_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is resumed and judged from any folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def fn(prompts, responses): return [0.0]\n", encoding="utf-8")
    (tmp_path / "act").mkdir()
    given = {
        "cache_dir": "c", "resume": "auto", "from": "../run", "data": {"source": "films.csv"},
        "actor": {"path": "act"}, "critic": {"path": "./act"}, 
        "gold": {"path": "owner/model", "others": {"x": {"fn": "mine:fn"}}},
        "reward": {"fn": "mine:fn", "sources": {"a": {"path": "act"}}}, "val": {"metrics": ["mine:fn", "json:dumps"]},
        "algo": {"loss": "mine:fn", "ptx_source": "imdb"}, "hacking": {"topic": "auto", "abuse": "words.txt"},
    }  # fmt: skip
    here, own = str(tmp_path), f"{tmp_path}/mine.py:fn"
    assert absolute(given) == {
        "cache_dir": f"{here}/c", "resume": "auto", "from": f"{tmp_path.parent}/run",
        "data": {"source": f"{here}/films.csv"}, "actor": {"path": f"{here}/act"}, "critic": {"path": f"{here}/act"},
        "gold": {"path": "owner/model", "others": {"x": {"fn": own}}},
        "reward": {"fn": own, "sources": {"a": {"path": f"{here}/act"}}}, "val": {"metrics": [own, "json:dumps"]},
        "algo": {"loss": own, "ptx_source": "imdb"}, "hacking": {"topic": "auto", "abuse": f"{here}/words.txt"},
    }  # fmt: skip
    assert absolute(absolute(given)) == absolute(given)


def test_one_wandb_id_is_not_every_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    set_id_aside()
    set_id_aside()
    assert "WANDB_RUN_ID" not in os.environ
    assert capsys.readouterr().out.count("WANDB_RUN_ID is set aside") == 1


def test_figures_are_ours_whatever_matplotlib_is_set_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setenv("MPLBACKEND", "module://nowhere.of_a_notebook")
    with mpl.rc_context({"text.usetex": True, "font.size": 40.0}):
        with drawing(font_size=9) as pyplot:
            figure, axes = pyplot.subplots()
            axes.set_title("100 % of $x_1 & y")  # LaTeX would stumble
            figure.savefig(tmp_path / "x.png")
            assert (mpl.rcParams["text.usetex"], mpl.rcParams["font.size"]) == (False, 9)
        assert mpl.rcParams["text.usetex"]  # the user's own is as it was
    assert (tmp_path / "x.png").stat().st_size > 0
    assert os.environ["MPLBACKEND"] == "module://nowhere.of_a_notebook"


def test_a_prompt_without_a_token_is_refused() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = born(Qwen2Config(vocab_size=10, intermediate_size=8, max_position_embeddings=64, **shape))
    check_fit(model, [[1], [2, 3]], 4)
    with pytest.raises(UserError, match="a prompt is empty"):
        check_fit(model, [[1], []], 4)


def test_texts_of_one_token_are_no_pretraining_text() -> None:
    def tokens(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    mix = Pretraining.make(["a", "", "b", "a film", "no film at all", "c d"], tokens, weight=1.0, batch_size=2, seed=0)
    assert sorted(map(len, [*mix.texts, *mix.held_out])) == [2, 2, 4]
