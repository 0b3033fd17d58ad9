"""Give command lines that look odd and are right, and what an unusual machine adds; print what they answered.

    python scripts/odd_input.py

Each must be taken: exit code 0, and the words that are looked for. Exit code 1 if one is not. What must be refused is
in scripts/bad_input.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bad_input import SMALL, answer

DATA = [
    "scale=mini", "reward=vader", "gold=none", "data.labeler=vader", "data.train=9", "data.test=3", "val.prompts=3",
]  # fmt: skip
MOODS = ("A wonderful charming film that I loved a lot", "A terrible boring film that I hated", "It was shown here")


@dataclass(frozen=True)
class Odd:
    what: str
    argv: list[str]
    part: str
    """What it must say."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of a process of its own."""


def cases(home: Path) -> Iterator[Odd]:
    """Every odd input, with its files under `home`; the first makes the run that others read."""
    home.mkdir(exist_ok=True)
    texts = [f"n{number} {mood} on day {number} by the sea" for number in range(20) for mood in MOODS]

    def data(name: str, content: str, *typed: str) -> list[str]:
        (home / name).write_text(content, encoding="utf-8")
        return ["data", *DATA, f"data.source={home / name}", *typed]

    def rows(texts: list[str]) -> str:
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)

    run = home / "it's (a) run, #1 & ümlaut"
    yield Odd("a run in a folder with quotes, commas and brackets", ["train", *SMALL, f"hydra.run.dir={_q(run)}"], "'")
    # data
    labelled = "".join(f"{text},{label}\n" for text, label in zip(texts, ["1.0", "0.0", ""] * 20, strict=True))
    yield Odd("labels 1.0 and 0.0 in a CSV", data("float.csv", f"text,label\n{labelled}"), "prefixes")
    long = "text\n" + "".join(f"{text} {'and more ' * (14589 * (n == 0))}\n" for n, text in enumerate(texts))
    yield Odd("a CSV field of 131,300 characters", data("long.csv", long), "prefixes")
    lines = "text,label\n" + "".join(f'"so,\n{text}",1\n' for text in texts)
    yield Odd("texts in several lines in a CSV", data("lines.csv", lines), "prefixes")
    chinese = [f"{word} 好看的电影{n}{'非常好' * 9}" for n in range(20) for word in ("good", "awful", "shown")]
    characters = ["data.unit=character", "data.min_words=12", "data.max_words=14"]
    yield Odd("Chinese cut by characters", data("zh.jsonl", rows(chinese), *characters), "prefixes")
    chat = data("chat.jsonl", rows([f"<|im_end|> {text}" for text in texts]))
    yield Odd("special tokens in data", chat, "special tokens such as <|im_end|>")
    # the command line
    dry = ["train", "--dry-run", *SMALL]
    odd = home / "ümlaut a'b=(c)&[d],#e"
    (odd / "experiment" / "deep").mkdir(parents=True)
    (odd / "experiment" / "deep" / "mine.yaml").write_text(
        "# @package _global_\nalgo:\n  beta: 0.5\n", encoding="utf-8"
    )
    mine = [*dry, "--config-dir", str(odd), "experiment=deep/mine"]
    yield Odd("--config-dir with an odd name, an experiment in a sub-folder", mine, "beta: 0.5")
    yield Odd("--config-dir=… between overrides", ["train", "seed=1", f"--config-dir={odd}", *dry[1:]], "dry run")
    yield Odd("--multirun between overrides", ["train", "--dry-run", "scale=mini", "--multirun", "seed=0,1"], "2 jobs")
    yield Odd("glob(…) over a group", ["sweep", "--dry-run", "scale=mini", "algo=glob(ppo*)"], "algo=ppo_kl")
    chosen = ["sweep", "--dry-run", "scale=mini", "experiment=choice(sweep_beta,smoke)"]
    yield Odd("several experiments, one of them a sweep", chosen, "16 jobs")
    yield Odd("a comma in --config-dir of a sweep", ["sweep", *mine[1:], "seed=0,1"], "beta: 0.5")
    yield Odd("values without quotes", [*dry, "notes=it's été & #1!", "name=日本"], "été & #1!")
    yield Odd("a home folder without quotes", [*dry, "data.source=~/reviews.csv"], "source: ~/reviews.csv")
    yield Odd("1e-05 in a W&B sweep", ["sweep", "wandb", "scale=mini", "algo.beta=1e-05,0.1"], "- 1.0e-05")
    for text in ("what a \\o/ movie", "it cost ${10}", "+1 would watch", "~so"):
        yield Odd(f"sample {text!r}", ["sample", *SMALL, text], text)
    yield Odd("sample: words behind --", ["sample", *SMALL, "--", "a=b", "--multirun"], "a=b")
    judged = ["eval", str(run), "--config-dir", str(odd), f"hydra.run.dir={_q(home / 'judged')}"]
    yield Odd("eval of a run's folder, --config-dir behind it", judged, "written")
    yield from machines(home, run, dry)


def machines(home: Path, run: Path, dry: list[str]) -> Iterator[Odd]:
    """What the variables of a machine bring, each in a process of its own."""
    for number, (name, value) in enumerate({"WANDB_BASE_URL": "wandb.corp", "WANDB_CONSOLE": "loud"}.items()):
        yield Odd(f"{name}={value}", _logged(home / f"w{number}"), f"W&B is off ({name}={value}: ", {name: value})
    yield Odd("WORLD_SIZE=abc", dry, "dry run", {"WORLD_SIZE": "abc"})
    page = ["report", str(run), f"out={home / 'page'}"]
    (home / "matplotlibrc").write_text("text.usetex: True\n", encoding="utf-8")
    yield Odd("a notebook's MPLBACKEND", page, "written", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    yield Odd("text.usetex in a matplotlibrc", page, "written", {"MATPLOTLIBRC": str(home / "matplotlibrc")})
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    yield Odd("a locale without UTF-8: --help", ["train", "--help"], "== Keys", plain)
    pair = ["compare", str(home / "w1"), f"hydra.run.dir={home / 'pair'}"]
    yield Odd("a locale without UTF-8: compare", pair, "compare.md", plain)
    yield Odd("FORCE_COLOR in a log file", _logged(home / "w3", "tracking=none"), "step 1/1", {"FORCE_COLOR": "1"})


def _q(path: Path) -> str:
    from rlhf_cli.config.arguments import quoted

    return quoted(str(path))


def _logged(folder: Path, tracking: str = "tracking=offline") -> list[str]:
    return ["train", *SMALL, tracking, f"hydra.run.dir={folder}"]


def asked(odd: Odd) -> tuple[int, str]:
    """(exit code, what was said)"""
    if not odd.environment:
        code, error, out = answer(odd.argv)
        return code, out + error
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *odd.argv],
        env={**os.environ, **odd.environment},
        capture_output=True,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def judge(odd: Odd) -> tuple[bool, int, str]:
    """(as it should be, exit code, the line that says it)"""
    code, said = asked(odd)
    lines = [line for line in said.splitlines() if odd.part in line]
    good = code == 0 and bool(lines) and "Traceback" not in said and "\x1b" not in said
    return good, code, lines[0] if lines else said[-300:]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    wrong, tried = 0, 0
    print("| input | exit code | it says |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for odd in cases(Path(folder)):
            good, code, said = judge(odd)
            wrong, tried = wrong + (not good), tried + 1
            cell = " ".join(said.replace(folder, "…").replace(os.getcwd(), ".").split()).replace("|", "\\|")
            print(f"| {odd.what} | {code}{'' if good else ' **WRONG**'} | {cell[:160]} |", flush=True)
    print(f"\n{tried} inputs tried, {tried - wrong} taken as they should be")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
