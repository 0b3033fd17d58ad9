"""Which sign of reward hacking trips first, how surely, with how many false alarms? A corpus of miniature runs, which
are labelled by the grammar that their reviews come from (`truth.py`), and a table of every sign (`table.py`).

    python scripts/detectors --out outputs/detectors                 all of it: about 90 minutes on one core
    python scripts/detectors --out outputs/detectors --only table    the table of the runs that are done
    python scripts/detectors --out outputs/detectors --samples 5     five responses of each run as well, to be read

Interrupted, the same command goes on: sweeps resume, and the signs of a run are kept in <out>/signs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from signals import Features, signals, validations
from table import Labelled, labelled, page

from rlhf_cli.report.chart import Chart, Series, save
from rlhf_cli.runs.status import read_status

SHARED = [
    "scale=mini", "tracking=none", "checkpoint.every=0", "val.every=4", "val.prompts=90", "steps=32",
    "rollout.batch_size=32", "optim.actor_lr=1.5e-3",
]  # fmt: skip
BOTH = "reward=roberta_base,roberta_large"
CORPUS = {
    "ppo": [BOTH, "algo.beta=0,0.01,0.05", "penalty.weight=0,1", "seed=0,1"],
    "honest": [
        "reward=python", "reward.fn=truth:honest_reward", "algo.beta=0,0.01,0.05", "seed=0,1,2",
    ],
    "vader": ["reward=vader", "gold=roberta_large", "algo.beta=0,0.05", "seed=0,1,2"],
    "grpo": ["algo=grpo", BOTH, "algo.beta=0,0.04", "seed=0,1"],
    "ppo_base": ["actor=qwen_base", BOTH, "algo.beta=0,0.05", "seed=0,1"],
    "rloo": ["algo=rloo", BOTH, "algo.beta=0,0.04", "seed=0,1"],
    "ppo_full": ["algo=ppo_full", BOTH, "algo.beta=0,0.05", "seed=0,1"],
}  # fmt: skip


def sweep(name: str, words: list[str], folder: Path) -> None:
    """Run what is not done of a sweep."""
    begun = (folder / "sweep.json").is_file()
    asked = [f"resume={folder}"] if begun else [*SHARED, *words, f"hydra.sweep.dir={folder}"]
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    print(f"sweep {name}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "sweep", *asked],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": threads},
    )


def done(out: Path) -> list[Path]:
    """The runs of the corpus that are finished."""
    runs = [run for name in CORPUS for run in sorted((out / name).glob("[0-9]*"), key=lambda f: int(f.name))]
    return [run for run in runs if read_status(run).get("state") == "done"]


def told(run: Path, out: Path, judges: dict[str, Features]) -> dict[str, Any]:
    """The signs of a run, from the kept file where there is one."""
    file = out / "signs" / f"{run.parent.name}_{run.name}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(signals(run, judges)), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def seen(run: Path, out: Path, judges: dict[str, Features]) -> Labelled:
    found = told(run, out, judges)
    about = found["config"]
    setting = " ".join(f"{key} {about[key]}" for key in ("algo", "actor", "name", "beta", "penalty"))
    return labelled(f"{run.parent.name}/{run.name}", setting, found)


def samples(run: Path, label: Labelled, count: int) -> str:
    rows = validations(run)[-1][1]
    chosen = random.Random(0).sample(rows, count)
    lines = [f"- {row['score']:.2f}: *{row['prefix']}* ▸{row['response']}" for row in chosen]
    return f"\n**{label.name}** ({label.setting}): {'hacked' if label.hacked else 'honest'}\n\n" + "\n".join(lines)


NAMES = {"python": "the true worth itself", "roberta_base": "weak classifier", "roberta_large": "sturdy classifier",
         "vader": "lexicon"}  # fmt: skip


def charts(runs: list[Labelled]) -> list[Chart]:
    """The reward, and the true worth, of every validation over its KL, by what the run was rewarded with."""
    drawn = []
    for title, curve in (("Reward", "score"), ("True worth", "worth")):
        series = []
        for style, (name, words) in enumerate(NAMES.items()):
            mine = [run for run in runs if run.reward == name]
            points = [point for run in mine for point in zip(run.signs["kl alone"], getattr(run, curve), strict=True)]
            xs, ys = [max(0.0, kl) ** 0.5 for kl, _ in points], [y for _, y in points]
            series.append(Series(words, xs, ys, style=style))
        drawn.append(Chart(title, "square root of the KL (nats)", "", series, lines=False, within=(0, 1)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/detectors"))
    parser.add_argument("--only", choices=["runs", "table"])
    parser.add_argument("--samples", type=int, default=0, help="responses of each run in the page")
    args = parser.parse_args()
    if args.only != "table":
        for name, words in CORPUS.items():
            sweep(name, words, args.out / name)
    if args.only == "runs":
        return
    import torch

    torch.set_num_threads(1)
    judges = {name: Features(name) for name in ("roberta_base", "roberta_large")}
    runs = {run: seen(run, args.out, judges) for run in done(args.out)}
    text = page(list(runs.values()))
    if args.samples:
        text += "\n".join(samples(run, label, args.samples) for run, label in runs.items()) + "\n"
    for chart in charts(list(runs.values())):
        save(chart, args.out)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
