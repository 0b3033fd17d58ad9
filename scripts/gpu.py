"""Everything that only a GPU can tell, in one command of less than ten minutes:

    python scripts/gpu.py [out=outputs/gpu] [steps=20] [model=qwen2.5-0.5b]

Random weights of the model's exact shape, so nothing is fetched. Prints what doctor says, and for PPO and GRPO: the KL
at the first step, seconds by phase, tokens a second, the share of the memory bandwidth in decoding and of the bfloat16
peak in the update, and peak memory beside the computed budget. Written to <out>/gpu.json. On a machine without a GPU it
says so; `device=cpu model=small steps=2` tries the script itself.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OPTIONS = {"out": "outputs/gpu", "steps": "20", "model": "qwen2.5-0.5b", "device": "cuda"}
PEAKS = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12), "A100": (2.0e12, 312e12), "4090": (1.0e12, 165e12)}
"""Bytes a second of the memory and bfloat16 operations a second without sparsity, from the makers' data sheets."""
SIZES = ["rollout.batch_size=64", "rollout.max_response_length=200", "data.train=300", "data.test=30", "val.prompts=30"]


def main() -> int:
    options = OPTIONS | dict(word.partition("=")[::2] for word in sys.argv[1:])
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        print(f"{unknown[0]}=: there is no such option; there are {', '.join(OPTIONS)}", file=sys.stderr)
        return 2
    import torch

    if options["device"] == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA GPU here: nothing to measure", file=sys.stderr)
        return 1
    sys.path.insert(0, str(Path(__file__).parent / "benchmark"))
    from shapes import SHAPES, make

    out = Path(options["out"]).absolute()
    from rlhf_cli.engine.load import load_tokenizer
    from rlhf_cli.miniatures.build import SHIPPED

    work = make(options["model"], out / "models" / options["model"])
    # a tokenizer that reads reviews; random weights draw from the whole vocabulary, of which it knows a part
    load_tokenizer(str(SHIPPED / "qwen_instruct")).save_pretrained(work / "actor")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    told: dict[str, Any] = {"device": name, "torch": torch.__version__, "model": options["model"]}
    for algo in ("ppo", "grpo"):
        told[algo] = measured(algo, options, out, work)
        told[algo] |= shares(told[algo], SHAPES[options["model"]].actor, name)
        print(f"{algo}: {json.dumps(told[algo], indent=1)}", flush=True)
    (out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out / 'gpu.json'}")
    return 0


def measured(algo: str, options: dict[str, str], out: Path, work: Path) -> dict[str, Any]:
    """A run in a process of its own: medians of its steps but the first two, in which graphs are captured."""
    run = out / f"{algo}_{time.strftime('%H%M%S')}"
    words = [
        "train", "scale=mini", f"algo={algo}", f"actor.path={work / 'actor'}", f"critic.path={work / 'actor'}",
        f"steps={options['steps']}", f"device={options['device']}", "prompt=plain", "reward=vader", "gold=none",
        "data.labeler=vader", "tracking=none", "checkpoint.every=0", "val.every=0", f"hydra.run.dir={run}", *SIZES,
    ]  # fmt: skip
    code = subprocess.run([sys.executable, "-m", "rlhf_cli", *words], check=False).returncode
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "time/update_s" in row]
    steady = steps[2:] or steps
    keys = ("time/rollout_s", "time/score_s", "time/forward_s", "time/update_s", "throughput/tokens_per_s")
    found = {key: statistics.median(row[key] for row in steady) for key in keys}
    tokens = statistics.median(64 * row["train/response_length"] for row in steady)
    return found | {
        "algo": algo,
        "exit": code,
        "KL at the first step": steps[0]["train/kl"],
        "tokens": tokens,
        "peak GB": max(row["memory/peak_mb"] for row in steps) / 1024,
    }


def shares(found: dict[str, Any], actor: tuple[int, ...], device: str) -> dict[str, Any]:
    """What decoding reads of the memory and the update computes, over what the device can do."""
    from rlhf_cli.engine.budget import GB, Shape, Work, budget

    shape = Shape(*actor)
    work = Work(rows=32, decoded=64, prompt=12, response=200, checkpointing=False, half="cuda" in device.lower())
    critic = "own" if found["algo"] == "ppo" else "none"
    computed = sum(budget(shape, critic=critic, judges=[], work=work).values()) / GB
    peak = next((peaks for card, peaks in PEAKS.items() if card in device), None)
    if peak is None:
        return {"computed GB": computed}
    read = 2 * (shape.linear + shape.vocabulary * shape.hidden) * 200 / found["time/rollout_s"]
    flops = 6 * (shape.linear + shape.vocabulary * shape.hidden) * found["tokens"] / found["time/update_s"]
    return {"computed GB": computed, "share of bandwidth": read / peak[0], "share of bf16 peak": flops / peak[1]}


if __name__ == "__main__":
    sys.exit(main())
