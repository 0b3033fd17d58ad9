"""Everything that only a GPU can tell, in one command of less than ten minutes:

    python scripts/gpu.py [out=outputs/gpu] [minutes=10] [parts=tests,ppo,grpo,vllm,limits] [steps=20]
        [model=qwen2.5-0.5b] [trl=DIR] [trl_ppo=DIR]

tests: those marked gpu. ppo, grpo: runs of Qwen2.5-0.5B's exact shape with random weights (nothing is fetched): the KL
at the first step, seconds by phase, tokens a second, the share of the memory bandwidth in decoding and of the bfloat16
peak in the update, peak memory beside the computed budget. vllm: GRPO with rollout.engine=vllm, if it is installed.
limits: the same shares against what a copy and a product reach on this very card. With trl= (and trl_ppo=, folders
of `pip install --no-deps --target`): the benchmark against TRL. Written to <out>/gpu.json after each part; a part that
fails is told, and the others go on. Without a GPU: `device=cpu model=tiny rows=8 response=16 steps=3` tries the script
itself.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    "out": "outputs/gpu", "minutes": "10", "parts": "tests,ppo,grpo,vllm,limits", "steps": "20",
    "model": "qwen2.5-0.5b", "device": "cuda", "rows": "64", "response": "200", "trl": "", "trl_ppo": "",
}  # fmt: skip
PEAKS = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12), "A100": (2.0e12, 312e12), "4090": (1.0e12, 165e12)}
"""Bytes a second of the memory and bfloat16 operations a second without sparsity, from the makers' data sheets."""
TINY = (64, 2, 2, 2, 128, 4096)
MICRO = 64
"""Rows of a pass, without gradient checkpointing: where there are few, launching takes longer than computing."""
LEAST = 30
"""Seconds that a part is worth beginning with."""


@dataclass(frozen=True)
class Bench:
    """What every part is given."""

    options: dict[str, str]
    out: Path
    work: Path
    shapes: Any
    ends: float
    """When the time is over, of `time.monotonic`."""

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def call(self, words: list[str], log: str) -> int:
        """A command's exit code, 124 where the time is over; its lines are shown, and kept in <out>/<log>."""
        place = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with (self.out / log).open("w", encoding="utf-8") as file:
            try:
                done = subprocess.run(
                    words, cwd=ROOT, env=place, stdout=file, stderr=subprocess.STDOUT, timeout=self.left, check=False
                )
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = 124
        print(self.tail(log), flush=True)
        return code

    def tail(self, log: str, lines: int = 12) -> str:
        return "\n".join((self.out / log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def main() -> int:
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(__doc__)
        return 0
    options = OPTIONS | dict(word.partition("=")[::2] for word in sys.argv[1:])
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        print(f"{unknown[0]}=: there is no such option; there are {', '.join(OPTIONS)}", file=sys.stderr)
        return 2
    parts = options["parts"].split(",")
    if strange := [part for part in parts if part not in PARTS]:
        print(f"parts={strange[0]}: there is no such part; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    import torch

    if options["device"] == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA GPU here: nothing to measure", file=sys.stderr)
        return 1
    bench = prepared(options)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    told: dict[str, Any] = {"device": name, "torch": torch.__version__, "model": options["model"]}
    for part in [*parts, *(["benchmark"] if options["trl"] else [])]:
        if bench.left < LEAST:
            told[part] = "left out: the time is over (minutes=)"
        else:
            began = time.monotonic()
            told[part] = attempted(PARTS[part], bench, name) | {"took_s": round(time.monotonic() - began)}
        print(f"{part}: {json.dumps(told[part], indent=1)}", flush=True)
        (bench.out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"written: {bench.out / 'gpu.json'}")
    failed = [part for part, found in told.items() if isinstance(found, dict) and found.get("exit", 0)]
    if failed:
        print(f"failed: {', '.join(failed)} (see the logs in {bench.out})", file=sys.stderr)
    return 1 if failed else 0


def prepared(options: dict[str, str]) -> Bench:
    """The models' folders, made where they are not there yet."""
    ends = time.monotonic() + 60 * float(options["minutes"])
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "benchmark")]
    import shapes

    from rlhf_cli.engine.load import load_tokenizer
    from rlhf_cli.miniatures.build import SHIPPED

    shapes.SHAPES["tiny"] = shapes.Shape(TINY, (32, 2, 2, 64), {}, {})
    out = Path(options["out"]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    work = shapes.make(options["model"], out / "models" / options["model"])
    # a tokenizer that reads reviews; random weights draw from the whole vocabulary, of which it knows a part
    load_tokenizer(str(SHIPPED / "qwen_instruct")).save_pretrained(work / "actor")
    return Bench(options, out, work, shapes, ends)


def attempted(part: Callable[[Bench, str], dict[str, Any]], bench: Bench, device: str) -> dict[str, Any]:
    """What a part found, or why it found nothing."""
    try:
        return part(bench, device)
    except (OSError, ValueError, LookupError, ArithmeticError) as error:
        return {"exit": 1, "error": f"{type(error).__name__}: {error}"}


def tests(bench: Bench, device: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", str(ROOT / "tests" / "test_gpu.py")]
    code = bench.call(words, "tests.log")
    return {"exit": code, "said": bench.tail("tests.log", 1)}


def ppo(bench: Bench, device: str) -> dict[str, Any]:
    return measured(bench, device, "ppo")


def grpo(bench: Bench, device: str) -> dict[str, Any]:
    return measured(bench, device, "grpo")


def vllm(bench: Bench, device: str) -> dict[str, Any]:
    if find_spec("vllm") is None:
        return {"left out": "vLLM is not installed here"}
    return measured(bench, device, "grpo", "rollout.engine=vllm")


def limits(bench: Bench, device: str) -> dict[str, Any]:
    if bench.options["model"] == "tiny":
        return {"left out": "model=tiny"}
    words = [sys.executable, str(ROOT / "scripts" / "benchmark" / "limits.py"), "--shape", bench.options["model"]]
    code = bench.call([*words, "--work", str(bench.out / "limits"), "--algo", "grpo"], "limits.log")
    return {"exit": code, "said": bench.tail("limits.log", 2)}


def benchmark(bench: Bench, device: str) -> dict[str, Any]:
    options = bench.options
    words = [sys.executable, str(ROOT / "scripts" / "benchmark"), "--trl", options["trl"]]
    words += ["--trl-ppo", options["trl_ppo"]] if options["trl_ppo"] else ["--algos", "grpo"]
    words += ["--shapes", options["model"], "--dtype", "bf16", "--repeats", "3", "--work", str(bench.out / "benchmark")]
    return {"exit": bench.call(words, "benchmark.log"), "said": bench.tail("benchmark.log", 8)}


PARTS = {
    "tests": tests, "ppo": ppo, "grpo": grpo, "vllm": vllm, "limits": limits, "benchmark": benchmark,
}  # fmt: skip


def measured(bench: Bench, device: str, algo: str, *more: str) -> dict[str, Any]:
    """A run in a process of its own: medians of its steps but the first two, in which graphs are captured."""
    options, actor = bench.options, bench.work / "actor"
    run = bench.out / f"{algo}{'_vllm' if more else ''}_{time.strftime('%H%M%S')}"
    words = [
        "train", "scale=mini", f"algo={algo}", f"actor.path={actor}",
        f"steps={options['steps']}", f"device={options['device']}", "prompt=plain", "reward=vader", "gold=none",
        "data.labeler=vader", "data.train=300", "data.test=30", "val.prompts=30", "tracking=none", "checkpoint.every=0",
        "val.every=0", f"rollout.batch_size={options['rows']}", f"rollout.max_response_length={options['response']}",
        f"optim.micro_batch_size={MICRO}", f"hydra.run.dir={run}", *more,
    ]  # fmt: skip
    words += [f"critic.path={actor}"] if algo == "ppo" else []
    code = bench.call([sys.executable, "-m", "rlhf_cli", *words], f"{run.name}.log")
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    steps = [row for row in rows if "time/update_s" in row]
    if not steps:
        return {"exit": code or 1, "said": bench.tail(f"{run.name}.log", 4)}
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # gigabytes, of random weights
    steady = steps[2:] or steps
    keys = (
        "time/rollout_s", "time/score_s", "time/forward_s", "time/update_s", "throughput/tokens_per_s",
        "train/logprob_mismatch", "train/response_length",
    )  # fmt: skip
    found = {key: statistics.median(row[key] for row in steady) for key in keys}
    found |= {
        "exit": code,
        "steps": len(steps),
        "KL at the first step": steps[0]["train/kl"],
        "s a step": statistics.median(sum(v for k, v in row.items() if k.startswith("time/")) for row in steady),
        "peak GB": max(row["memory/peak_mb"] for row in steps) / 1024,
    }
    return found | shares(found, bench, algo, device)


def shares(found: dict[str, Any], bench: Bench, algo: str, device: str) -> dict[str, Any]:
    """What decoding reads of the memory and the update computes, over what the maker says the device can do; and the
    computed budget."""
    from rlhf_cli.build.algo import algorithm
    from rlhf_cli.config.compose import plan
    from rlhf_cli.engine.budget import GB, Shape, Work, budget

    rows, response, prompt = int(bench.options["rows"]), int(bench.options["response"]), 12
    shape = Shape(*bench.shapes.SHAPES[bench.options["model"]].actor)
    half = bench.options["device"] == "cuda"
    chosen = algorithm(plan("train", ["scale=mini", f"algo={algo}"], multirun=False, config_dir=None).jobs[0])
    at_once = min(rows // chosen.minibatches, MICRO)
    work = Work(at_once, rows, prompt, response, checkpointing=False, half=half)
    critic = "own" if algo == "ppo" else "none"
    computed = {"computed GB": sum(budget(shape, critic=critic, judges=[], work=work).values()) / GB}
    peak = next((peaks for card, peaks in PEAKS.items() if card in device), None)
    if peak is None:
        return computed
    head, tokens = shape.vocabulary * shape.hidden, rows * found["train/response_length"]
    read = tokens / rows * 2 * (shape.linear + head)
    products = shape.linear * (2 if critic == "own" else 1) + head
    flops = 6 * products * tokens * chosen.epochs
    return computed | {
        "share of bandwidth": read / found["time/rollout_s"] / peak[0],
        "share of bf16 peak": flops / found["time/update_s"] / peak[1],
    }


if __name__ == "__main__":
    sys.exit(main())
