"""How near a step comes to the machine's limits: `python scripts/benchmark/limits.py --shape mini`.

The update's matrix products against the best that a product reaches here; on a GPU also what decoding reads (weights,
keys and values, every token) against the best that a copy reaches. On the CPU in CPU seconds of one thread, so that
other programs may run beside it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
import torch
import turns
import worker_rlhf

GPU = torch.cuda.is_available()


def seconds_of(work: Callable[[], Any]) -> float:
    """On a GPU until it is done."""
    clock = time.perf_counter if GPU else time.process_time
    turns.sync()
    start = clock()
    work()
    turns.sync()
    return clock() - start


def product_peak(dtype: torch.dtype, tries: int = 30) -> float:
    """FLOP/s of the best matrix product: as large as a GPU wants it, as large as a layer's on the CPU."""
    rows, inner, columns = (8192, 8192, 8192) if GPU else (944, 512, 2048)
    device = "cuda" if GPU else "cpu"
    a, b = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, columns))
    out = a.new_empty(rows, columns)
    return 2 * rows * inner * columns / min(seconds_of(lambda: torch.mm(a, b.T, out=out)) for _ in range(tries))


def copy_peak(tries: int = 30) -> float:
    """Bytes/s that a copy within the GPU's memory reads and writes."""
    a = torch.randn(2**28, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / min(seconds_of(lambda: b.copy_(a)) for _ in range(tries))


def update_flop(shape: str, algo: str) -> float:
    """Floating-point operations of the update's matrix products, attention left out: forward, and twice that backward.

    The prompts of a group count once, as they are computed once; on the CPU of the last layer only what predicts.
    """
    hidden, layers, heads, kv_heads, inner, vocabulary = shapes.SHAPES[shape].actor
    read, rest = hidden * hidden * (1 + 2 * kv_heads / heads), hidden * hidden + 3 * hidden * inner
    prompts = shapes.SEQUENCES // (shapes.GROUP if algo == "grpo" else 1)
    tokens = shapes.SEQUENCES * (shapes.RESPONSE - 1) + prompts * shapes.PROMPT
    last = tokens if GPU else tokens - prompts * (shapes.PROMPT - 1)
    trunk = 2 * (layers * read * tokens + rest * ((layers - 1) * tokens + last))
    head = 2 * hidden * vocabulary * shapes.SEQUENCES * shapes.RESPONSE
    return 3 * (trunk * (2 if algo == "ppo" else 1) + head)


def rollout_bytes(shape: str, bytes_each: int) -> float:
    """What decoding must read: all weights once a token, and the keys and values of the tokens so far."""
    hidden, layers, heads, kv_heads, inner, vocabulary = shapes.SHAPES[shape].actor
    weights = layers * (hidden * hidden * (2 + 2 * kv_heads / heads) + 3 * hidden * inner) + vocabulary * hidden
    seen = sum(shapes.PROMPT + at for at in range(shapes.RESPONSE))
    cache = shapes.SEQUENCES * layers * 2 * hidden * kv_heads / heads
    return bytes_each * (shapes.RESPONSE * weights + seen * cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--shape", default="mini", choices=list(shapes.SHAPES))
    parser.add_argument("--algo", default="ppo", choices=["ppo", "grpo"])
    parser.add_argument("--dtype", default="bf16" if GPU else "fp32", choices=["fp32", "bf16"])
    parser.add_argument("--work", default="/tmp/rlhf_benchmark", type=Path)
    given = parser.parse_args()
    folder = shapes.make(given.shape, given.work / given.shape)
    from rlhf_cli.engine import read as forward
    from rlhf_cli.training import loop, rollouts

    made = worker_rlhf.make_experiment(folder, given.shape, given.algo, given.dtype, 0, [])
    worker_rlhf.force(json.loads((folder / "work.json").read_text(encoding="utf-8"))["lengths"]["fixed"], True)
    forward.KEEP_BYTES = {}  # all forward passes that are counted are the update's own
    seconds: dict[str, list[float]] = {"optimize": [], "sample": []}

    def timed(place: Any, name: str) -> Callable[..., Any]:
        inner = getattr(place, name)

        def outer(*arguments: Any, **options: Any) -> Any:
            result: list[Any] = []
            seconds[name].append(seconds_of(lambda: result.append(inner(*arguments, **options))))
            return result[0]

        return outer

    for place, name in ((loop, "optimize"), (rollouts, "sample")):
        setattr(place, name, timed(place, name))
    for step in range(1, given.steps + 1):
        made.step(step)
    dtype = torch.bfloat16 if given.dtype == "bf16" else torch.float32
    reached, peak = update_flop(given.shape, given.algo) / min(seconds["optimize"][1:]), product_peak(dtype)
    print(f"update: {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of a matrix product's {peak / 1e9:.0f}")
    if GPU:
        reached, peak = rollout_bytes(given.shape, dtype.itemsize) / min(seconds["sample"][1:]), copy_peak()
        print(f"decoding: {reached / 1e9:.0f} GB/s, {reached / peak:.0%} of a copy's {peak / 1e9:.0f}")


if __name__ == "__main__":
    main()
