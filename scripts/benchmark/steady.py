"""Does memory stay where it is over many steps? `python scripts/benchmark/steady.py --steps 500 --shape tiny`.

Prints the resident memory every so many steps.
"""

import argparse
import json
from pathlib import Path

import shapes
import worker_rlhf

shapes.SHAPES["tiny"] = shapes.Shape((32, 2, 2, 2, 64, 512), (32, 2, 2, 64), {}, {"ppo": 64, "grpo": 64})


def resident_mb() -> float:
    """Of this process, now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--shape", default="mini", choices=list(shapes.SHAPES))
    parser.add_argument("--algo", default="ppo", choices=["ppo", "grpo"])
    parser.add_argument("--regime", default="natural", choices=["fixed", "natural"])
    parser.add_argument("--work", default="/tmp/rlhf_benchmark", type=Path)
    given = parser.parse_args()
    folder = shapes.make(given.shape, given.work / given.shape)

    made = worker_rlhf.make_experiment(folder, given.shape, given.algo, "fp32", 0, [])
    lengths = json.loads((folder / "work.json").read_text(encoding="utf-8"))["lengths"][given.regime]
    worker_rlhf.force(lengths, given.regime == "fixed")
    every = max(1, given.steps // 10)
    for step in range(1, given.steps + 1):
        made.step(step)
        if step == 1 or step % every == 0:
            print(f"step {step}: {resident_mb():.0f} MB", flush=True)


if __name__ == "__main__":
    main()
