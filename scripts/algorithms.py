"""Every algorithm on the same miniature task: train what is missing, then write the table.

    python scripts/algorithms.py --steps 20 --seeds 0 1 2 --out outputs/algorithms --table docs/algorithms.md

A run that is already done is not run again, one that was cut off goes on. The table is made from the runs' own
config.yaml and metrics.jsonl.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

CONF = Path(__file__).resolve().parents[1] / "conf" / "algo"
KEYS = ("advantage", "surrogate", "kl", "kl_estimator", "aggregation", "update")
COLUMNS = {"val/score": "score", "val/kl": "KL", "val/repetition": "repetition", "val/response_length": "length"}
PHASES = ("time/rollout_s", "time/score_s", "time/forward_s", "time/update_s")


def run(algo: str, seed: int, folder: Path, steps: int) -> None:
    status = folder / "status.json"
    if status.exists() and json.loads(status.read_text(encoding="utf-8"))["state"] == "done":
        return
    print(f"{algo}, seed {seed}", flush=True)
    options = ["scale=mini", "tracking=none", f"steps={steps}", f"seed={seed}", "val.every=0", "checkpoint.every=0"]
    if algo == "grpo_iterative":
        # the same fixed reward for all; the reference refreshed every 5 steps
        options += ["algo.retrain_epochs=0", "algo.steps_per_iteration=5"]
    command = [sys.executable, "-m", "rlhf_cli", "train", f"algo={algo}", *options, "resume=auto"]
    done = subprocess.run([*command, f"hydra.run.dir={folder}"], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{algo}, seed {seed}: exit code {done.returncode}; see {folder}/error.log")


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def finished(folder: Path) -> bool:
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text(encoding="utf-8"))["state"] == "done"


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(out: Path, steps: int) -> str:
    head = ["algorithm", *KEYS, *COLUMNS.values(), "s/step", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for algo in sorted(file.stem for file in CONF.glob("*.yaml")):
        folders = [folder for folder in sorted((out / algo).glob("*")) if finished(folder)]
        if not folders:
            continue
        composed = yaml.safe_load((folders[0] / "config.yaml").read_text(encoding="utf-8"))["algo"]
        runs = [rows_of(folder) for folder in folders]
        cells = [spread([rows[-1][key] for rows in runs], 1 if key == "val/response_length" else 2) for key in COLUMNS]
        seconds = [statistics.median(sum(row[p] for p in PHASES) for row in rows[1:]) for rows in runs]
        choices = [str(composed[key]) if composed["kl"] != "none" or key != "kl_estimator" else "–" for key in KEYS]
        line = [f"`{algo}`", *choices, *cells, f"{min(seconds):.2f}", str(len(runs))]
        lines.append("| " + " | ".join(line) + " |")
    start = statistics.mean(rows_of(folder)[0]["val/score"] for folder in sorted(out.glob("*/*")) if finished(folder))
    about = (
        f"Miniature task (a simulation), {steps} steps, val/score before training {start:.2f}; mean ± standard "
        "deviation over seeds. Each algorithm runs with its YAML's own keys and the learning rates of `scale=mini`: "
        "none was tuned for this table, so it compares compositions as shipped, not what each could reach. s/step is "
        "the fastest seed's median on one thread. grpo_iterative refreshes its reference every 5 steps, the "
        "last time just before the last validation: its KL is 0 there."
    )
    return f"# Every algorithm on one task\n\n{about}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algos", nargs="+", default=sorted(file.stem for file in CONF.glob("*.yaml")))
    parser.add_argument("--out", type=Path, default=Path("outputs/algorithms"))
    parser.add_argument("--table", type=Path, default=None)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for algo in arguments.algos:
            run(algo, seed, arguments.out / algo / f"seed_{seed}", arguments.steps)
    text = table(arguments.out, arguments.steps)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
