"""`rlhf` against TRL on this machine, in turns: `python scripts/benchmark --trl DIR --trl-ppo DIR --shapes mini small`.

TRL is needed for this only. It is imported from where it lies, or from a folder of its own:

    pip install --no-deps --target /tmp/trl trl==1.16.0 accelerate psutil
    pip install --no-deps --target /tmp/trl_ppo trl==1.12.0 accelerate psutil

Both sides take steps in turns in two processes, each idle while the other runs: same weights, prompts, number of
tokens, epochs, minibatches and threads. Writes JSON and a Markdown table of medians and of the ratio's quartiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import shapes

HERE = Path(__file__).parent


class Worker:
    """A process that takes a step when told."""

    def __init__(self, script: str, given: argparse.Namespace, **options: Any) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {"CUDA_VISIBLE_DEVICES": "0"} | environment
        if given.dtype == "bf16":
            environment["ACCELERATE_MIXED_PRECISION"] = "bf16"  # TRL's PPO passes its bf16=True on to nobody
        arguments = [f"--{name}={value}" for name, value in options.items() if value]
        self.log = open(Path(given.work) / f"{script}.log", "w", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.start = self._hear()

    def step(self) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker stopped; see {self.log.name}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(given: argparse.Namespace, shape: str, algo: str, regime: str) -> dict[str, Any]:
    """Both sides' steps in turns: seconds, phases, memory."""
    folder = shapes.make(shape, Path(given.work) / shape)
    common = {"folder": folder, "shape": shape, "algo": algo, "regime": regime, "dtype": given.dtype}
    ours = Worker("worker_rlhf.py", given, **common, micro=given.rlhf_micro)
    theirs = Worker(
        "worker_trl.py", given, **common, micro=given.trl_micro, trl=given.trl_ppo if algo == "ppo" else given.trl
    )
    for _ in range(given.warmup):
        ours.step(), theirs.step()
    rlhf, trl = [], []
    for _ in range(given.repeats):
        rlhf.append(ours.step())
        trl.append(theirs.step())
    result = {
        "shape": shape,
        "algo": algo,
        "regime": regime,
        "dtype": given.dtype,
        "rlhf": summary(rlhf, ours.start),
        "trl": summary(trl, theirs.start),
        "ratios": sorted(t["seconds"] / r["seconds"] for r, t in zip(rlhf, trl, strict=True)),
    }
    result["speed"] = statistics.median(result["ratios"])
    result["cpu_speed"] = result["trl"]["cpu_seconds"] / result["rlhf"]["cpu_seconds"]
    result["memory"] = result["rlhf"]["peak_mb"] / result["trl"]["peak_mb"]
    ours.close(), theirs.close()
    return result


def summary(steps: list[dict[str, Any]], start: dict[str, Any]) -> dict[str, Any]:
    median = statistics.median
    seconds = median(s["seconds"] for s in steps)
    return {
        "seconds": seconds,
        "cpu_seconds": median(s["cpu"] for s in steps),
        "samples_per_s": shapes.SEQUENCES / seconds,
        "tokens_per_s": steps[0]["tokens"] / seconds,
        "peak_mb": max(s["peak_mb"] for s in steps),
        "phases": {name: median(s["phases"][name] for s in steps) for name in steps[0]["phases"]},
        "start_s": start["ready"],
        "imports_s": start["imports"],
        "all_seconds": [s["seconds"] for s in steps],
    }


TARGETS = {
    ("ppo", "fixed"): (2, 1.5, 3),
    ("ppo", "natural"): (4, 3, 5),
    ("grpo", "fixed"): (1.5, 1.3, 3),
    ("grpo", "natural"): (3, 2.5, 5),
}


def table(results: list[dict[str, Any]]) -> str:
    """One row a measurement; the ratio is TRL's seconds over ours, step by step: the median and the range.

    Where other programs share the machine, the ratio of CPU seconds is the steadier one.
    """
    head = ["shape", "algorithm, lengths", "rlhf s", "TRL s", "ratio (range)", "CPU-time ratio", "target"]
    head += ["rollout", "score", "forward", "update", "tokens/s", "peak MB", "memory ratio", "start s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        ours, theirs, ratios = r["rlhf"], r["trl"], r["ratios"]
        target = TARGETS[r["algo"], r["regime"]][list(shapes.SHAPES).index(r["shape"])]
        phases = [f"{ours['phases'][p]:.2f} / {theirs['phases'].get(p, 0):.2f}" for p in head[7:11]]
        cells = [
            f"{r['shape']}, {r['dtype']}",
            f"{r['algo'].upper()}, {r['regime']}",
            f"{ours['seconds']:.2f}",
            f"{theirs['seconds']:.2f}",
            f"**{r['speed']:.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f})",
            f"{r['cpu_speed']:.2f}",
            f"≥ {target}",
            *phases,
            f"{ours['tokens_per_s']:.0f} / {theirs['tokens_per_s']:.0f}",
            f"{ours['peak_mb']:.0f} / {theirs['peak_mb']:.0f}",
            f"{r['memory']:.2f}",
            f"{ours['start_s']:.0f} / {theirs['start_s']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["mini"], choices=list(shapes.SHAPES))
    parser.add_argument("--algos", nargs="+", default=["ppo", "grpo"], choices=["ppo", "grpo"])
    parser.add_argument("--regimes", nargs="+", default=["fixed", "natural"], choices=["fixed", "natural"])
    parser.add_argument("--trl", help="folder that holds the current TRL (GRPO); default: as importable")
    parser.add_argument("--trl-ppo", help="folder that holds TRL 1.12 (PPO); default: as importable")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rlhf-micro", type=int, help="our micro-batch (default: shapes.py)")
    parser.add_argument("--trl-micro", type=int, help="TRL's micro-batch (default: shapes.py, its fastest)")
    parser.add_argument("--work", default="/tmp/rlhf_benchmark", help="weights, prompts and logs go here")
    parser.add_argument("--out", default="outputs/benchmark", help="writes <out>.json and <out>.md")
    given = parser.parse_args()
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    results = []
    for shape in given.shapes:
        for algo in given.algos:
            for regime in given.regimes:
                results.append(measure(given, shape, algo, regime))
                Path(f"{given.out}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
                Path(f"{given.out}.md").write_text(table(results), encoding="utf-8")
                print(table(results[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
