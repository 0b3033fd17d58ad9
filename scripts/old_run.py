"""Make the run folder that later releases are to go on with: tests/data/run_<version>, for tests/test_old_runs.py.

    python scripts/old_run.py

An actor and reviews of its own, a run of one step, and the metrics of the second step of a run that went on. Every path
in it is relative to its folder, so that it can be copied. Made once for each release, and never made anew.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from rlhf_cli import __version__
from rlhf_cli.cli import dispatch
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.miniatures import tokenizers
from rlhf_cli.tracking.jsonl import read_jsonl

KEPT = Path(__file__).parents[1] / "tests" / "data" / f"run_{__version__}"
OPTIONS = [
    "scale=mini", "tracking=none", "actor.path=./actor", "data.source=./reviews.jsonl", "cache_dir=./cache",
    "data.labeler=vader", "data.train=12", "data.test=6", "reward=vader", "gold=none", "prompt=plain", "val.prompts=6",
    "val.every=1", "checkpoint.every=1", "rollout.batch_size=8", "rollout.max_response_length=6",
    "optim.schedule=constant", "optim.actor_lr=2e-3", "optim.warmup_steps=0", "algo.minibatches=2", "device=cpu",
    "precision=fp32",
]  # fmt: skip
OF_THIS_MACHINE = (".lock", "error.log")


def make_actor(folder: Path, texts: list[str]) -> None:
    """A random Qwen2 of 16 dimensions over bytes and a few words."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizers.VOCABULARY["qwen"] = 300
    tokenizer = tokenizers.qwen_tokenizer(texts, eos=tokenizers.END)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(home: Path) -> None:
    """Actor, reviews, run/ and step_2.json in `home`, which is the working directory."""
    reviews = [" ".join(review.text.split()[:9]) for review in generate_reviews(120, seed=0)]
    (home / "reviews.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in reviews), encoding="utf-8"
    )
    make_actor(home / "actor", reviews)
    for folder, steps in (("whole", 2), ("run", 1)):
        code = dispatch(["train", *OPTIONS, f"steps={steps}", f"hydra.run.dir={folder}", "hydra.output_subdir=null"])
        assert code == 0
    row = read_jsonl(home / "whole" / "metrics.jsonl")[2]
    metrics = {key: value for key, value in row.items() if not key.startswith(("time/", "throughput/", "memory/"))}
    (home / "step_2.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(home / "whole")
    shutil.rmtree(home / "cache")
    for name in OF_THIS_MACHINE:
        (home / "run" / name).unlink(missing_ok=True)
    status = json.loads((home / "run" / "status.json").read_text(encoding="utf-8")) | {"host": "elsewhere", "pid": 1}
    (home / "run" / "status.json").write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    if KEPT.exists():
        print(f"{KEPT} is there: it is what rlhf {__version__} left, and stays", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        make(Path(place))
        os.chdir(KEPT.parent)
        shutil.copytree(place, KEPT)
    size = sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file())
    print(f"{KEPT}: {size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
