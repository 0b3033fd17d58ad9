"""Does memory stay where it is over many steps? `python scripts/benchmark/steady.py --steps 500 --shape tiny`.

Prints the resident memory every so many steps; with `--regime fixed` also how near the update's matrix products are to
the machine's peak (in CPU seconds of one thread: other programs may run beside it).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import shapes
import torch
import worker_rlhf

shapes.SHAPES["tiny"] = shapes.Shape((32, 2, 2, 2, 64, 512), (32, 2, 2, 64, 512), {}, {"ppo": 64, "grpo": 64})


def resident_mb() -> float:
    """Of this process, now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def peak_gflops(rows: int = 944, inner: int = 512, columns: int = 2048, tries: int = 30) -> float:
    """The best that a float32 matrix product of a layer's size reaches here."""
    a, b, out = torch.randn(rows, inner), torch.randn(columns, inner), torch.empty(rows, columns)
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        torch.mm(a, b.T, out=out)
        seconds.append(time.process_time() - start)
    return 2 * rows * inner * columns / min(seconds) / 1e9


def update_gflop(shape: str, algo: str) -> float:
    """Floating-point operations of the update's matrix products, attention left out: forward, and twice that backward.

    The prompts of a group count once, as they are computed once; of the last layer only where something is predicted.
    """
    hidden, layers, heads, kv_heads, inner, vocabulary = shapes.SHAPES[shape].actor
    read, rest = hidden * hidden * (1 + 2 * kv_heads / heads), hidden * hidden + 3 * hidden * inner
    prompts = shapes.SEQUENCES // (shapes.GROUP if algo == "grpo" else 1)
    tokens = shapes.SEQUENCES * (shapes.RESPONSE - 1) + prompts * shapes.PROMPT
    predictors = tokens - prompts * (shapes.PROMPT - 1)
    trunk = 2 * (layers * read * tokens + rest * ((layers - 1) * tokens + predictors))
    head = 2 * hidden * vocabulary * shapes.SEQUENCES * shapes.RESPONSE
    return 3 * (trunk * (2 if algo == "ppo" else 1) + head) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--shape", default="mini", choices=list(shapes.SHAPES))
    parser.add_argument("--algo", default="ppo", choices=["ppo", "grpo"])
    parser.add_argument("--regime", default="natural", choices=["fixed", "natural"])
    parser.add_argument("--work", default="/tmp/rlhf_benchmark", type=Path)
    given = parser.parse_args()
    folder = shapes.make(given.shape, given.work / given.shape)
    from rlhf_cli.rl import forward
    from rlhf_cli.training import loop
    from rlhf_cli.training.state import make_state

    lab = worker_rlhf.make_lab(folder, given.shape, given.algo, "fp32", 0, [])
    state = make_state(lab.config, lab)
    lengths = json.loads((folder / "work.json").read_text())["lengths"][given.regime]
    worker_rlhf.force(lengths, given.regime == "fixed")
    if given.regime == "fixed":
        forward.KEEP_BYTES = {}  # all forward passes that are counted are the update's own
    every, updates, update = max(1, given.steps // 10), [], loop.update

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = update(*arguments, **options)
        updates.append(time.process_time() - start)
        return result

    loop.update = timed
    for step in range(1, given.steps + 1):
        loop.train_step(lab, state, step)
        if step == 1 or step % every == 0:
            print(f"step {step}: {resident_mb():.0f} MB", flush=True)
    peak = peak_gflops()
    if given.regime == "fixed":
        reached = update_gflop(given.shape, given.algo) / min(updates[1:])
        print(f"update: {reached:.0f} GFLOP a CPU second, {reached / peak:.0%} of a matrix product's {peak:.0f}")


if __name__ == "__main__":
    main()
