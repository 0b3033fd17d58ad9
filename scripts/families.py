"""Tiny random models of many kinds against plain transformers: `python scripts/families.py` writes docs/models.md.

Of each kind: which way it takes, the largest difference of log-probs, entropies and values (each sequence alone and
unpadded on the other side) and of gradients, whether a PPO and a GRPO step run from the command line, and whether what
PPO saved loads plainly with the log-probs that rlhf reads from it. `--kinds gpt2 llama` for some, `--quick` for no
training (and no such columns).
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.helpers.compare import differences, reload_difference  # noqa: E402
from tests.helpers.tiny_models import KINDS, make, tokenizer  # noqa: E402

TRAIN = [
    "scale=mini", "device=cpu", "tracking=none", "steps=1", "data.source=generated", "data.train=12", "data.test=6",
    "data.labeler=vader", "val.prompts=3", "rollout.batch_size=8", "rollout.max_response_length=8", "reward=vader",
    "gold=none", "prompt=plain", "optim.warmup_steps=0", "optim.actor_lr=1e-3",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), metavar="KIND", default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="no training")
    parser.add_argument("--work", type=Path, help="where models and runs go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        rows = [row(kind, given.work or Path(temporary), given.quick) for kind in given.kinds]
    if given.kinds == list(KINDS):
        given.out.write_text(page(rows))


def row(kind: str, work: Path, quick: bool) -> list[str]:
    """One line of the table, printed as soon as it is known."""
    from rlhf_cli.data.generated import generate_reviews

    tokens = tokenizer(work / "tokenizer", [review.text for review in generate_reviews(300, seed=0)])
    folder = work / "".join(c if c.isalnum() else "_" for c in kind)
    cells = [kind, "", "", "", "", "", ""]
    try:
        make(kind, folder, tokens)
        found = differences(folder)
        cells[1:4] = [found.way, f"{found.numbers:.0e}", f"{found.gradients:.0e}"]
        if not quick:
            cells[4:] = trained(folder, work)
    except Exception as error:
        cells[1] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    print(" | ".join(cells), flush=True)
    return cells


def trained(folder: Path, work: Path) -> list[str]:
    """(PPO, GRPO, reload)"""
    from rlhf_cli.cli import dispatch

    cells = []
    for algo in ("ppo", "grpo"):
        run = work / f"{folder.name}_{algo}"
        more = [f"algo={algo}", f"actor.path={folder}", f"cache_dir={work / 'cache'}", f"hydra.run.dir={run}"]
        more += ["algo.group_size=4"] if algo == "grpo" else []
        cells.append("yes" if dispatch(["train", *TRAIN, *more]) == 0 else "no")
    saved = work / f"{folder.name}_ppo" / "checkpoints" / "step_000001" / "actor"
    return [*cells, f"{reload_difference(saved):.0e}" if cells[0] == "yes" else "–"]


def page(rows: list[list[Any]]) -> str:
    import platform

    import transformers

    head = ["kind", "way", "log-probs, entropies, values", "gradients", "PPO", "GRPO", "saved and loaded plainly"]
    if not any(cells[4] for cells in rows):  # --quick
        head, rows = head[:4], [cells[:4] for cells in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    about = f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}, float32"
    return INTRODUCTION + f"Made by `python scripts/families.py` ({about}).\n\n" + "\n".join(lines) + "\n"


INTRODUCTION = """# Which models can be trained

Any decoder-only language model that transformers loads as a causal LM without remote code. It takes one of two ways,
and a gate chooses: when a model is loaded, a handful of tokens go through both.

- **fast**: our own forward pass over the model's weights, for Llama-like decoders that one description covers
  (`rlhf_cli/engine/decoder.py`): Qwen2, Qwen3, Llama, SmolLM2, SmolLM3, Mistral, Gemma, Granite. Sequences are packed
  without padding, a prompt is read once for its whole group, decoding has a KV cache that is laid out once (on a GPU:
  a CUDA graph). A model whose log-probs differ by more than 1e-4 nats in float32 takes the plain way.
- **plain**: the model's own `forward` with public arguments and public caches. Logits are the model's, so soft-caps,
  scales, biases, attention sinks and ALiBi are right.

The table compares tiny random models of each kind with plain transformers, each sequence alone and unpadded: the
largest difference in nats (values in their own size, gradients relative to the largest of their weight).

"""


if __name__ == "__main__":
    main()
