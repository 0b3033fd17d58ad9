"""Tiny random models of many kinds against plain transformers: `python scripts/families.py` writes docs/models.md.

Of each kind: which way it takes, the largest difference of log-probs, entropies and values (each sequence alone and
unpadded on the other side) and of gradients, whether a PPO and a GRPO step run from the command line, and whether what
PPO saved loads plainly with the log-probs that rlhf reads from it. A second table has the speed of four families at one
shape. `--kinds gpt2 llama` for some, `--quick` for no training and no speed, `--speed` for the second table alone.
"""

import argparse
import io
import os
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from rlhf_cli.cli import dispatch  # noqa: E402
from rlhf_cli.data.generated import generate_reviews  # noqa: E402
from rlhf_cli.engine.dropout import train_mode  # noqa: E402
from rlhf_cli.engine.gate import way_of  # noqa: E402
from rlhf_cli.engine.gradients import in_place  # noqa: E402
from rlhf_cli.engine.load import load_actor  # noqa: E402
from rlhf_cli.engine.read import read  # noqa: E402
from rlhf_cli.engine.sample import sample  # noqa: E402
from rlhf_cli.rl.rollout import Prompts  # noqa: E402
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
    parser.add_argument("--speed", action="store_true", help="the speed of four families, and nothing else")
    parser.add_argument("--work", type=Path, help="where models and runs go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # tiny models: more threads only wait for one another
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        rows = [] if given.speed else [row(kind, work, given.quick) for kind in given.kinds]
        speeds = [] if given.quick or (given.kinds != list(KINDS) and not given.speed) else speed(work)
    if rows and given.kinds == list(KINDS):
        given.out.write_text(page(rows, speeds), encoding="utf-8")


FOUR = {
    "qwen2": {},
    "llama": {},
    "gemma": {"head_dim": 32},
    "gpt2": {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 256},
}
SHAPE = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1024,
}  # fmt: skip
ROUNDS, ROWS, PROMPT, RESPONSE = 5, 16, 16, 32


def speed(work: Path) -> list[list[str]]:
    """Seconds to sample a rollout, and to read it and find gradients, of four families at one shape, relative to Qwen2:
    the median of rounds in which each has its turn, after one that is not counted."""
    from statistics import median

    tokens = tokenizer(work / "tokenizer", [review.text for review in generate_reviews(300, seed=0)])
    actors = {}
    for kind, own in FOUR.items():
        shape = SHAPE if kind != "gpt2" else {}
        folder = make(kind, work / f"speed_{kind}", tokens, **shape, **own, tie_word_embeddings=True)
        actors[kind] = load_actor(str(folder), device=torch.device("cpu"))
    rounds = [{kind: timed(actor) for kind, actor in actors.items()} for _ in range(ROUNDS + 1)][1:]
    found = []
    for kind, actor in actors.items():
        sampling, learning = ([turn[kind][part] for turn in rounds] for part in (0, 1))
        ratios = [sum(turn[kind]) / sum(turn["qwen2"]) for turn in rounds]
        numbers = (
            f"{median(sampling):.2f} s",
            f"{median(learning):.2f} s",
            f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        )
        found.append([kind, "fast" if way_of(actor).decoder else "plain", *numbers])
        print(" | ".join(found[-1]), flush=True)
    return found


def timed(actor: Any) -> tuple[float, float]:
    generator, many = torch.Generator().manual_seed(0), torch.arange(ROWS)
    ids = torch.randint(1, 1000, (ROWS, PROMPT), generator=generator)
    prompts = Prompts(ids, torch.full((ROWS,), PROMPT), many, many)
    begin = perf_counter()
    rollout = sample(
        actor, prompts, eos_ids=(0,), pad_id=0, max_length=RESPONSE, temperature=1.0, seed=0, step=1, cuda_graphs=False
    )
    middle = perf_counter()
    train_mode(actor)
    with in_place():
        read(actor, rollout, temperature=1.0).logprobs.sum().backward()
    end = perf_counter()
    actor.zero_grad(set_to_none=True)
    actor.eval()
    return middle - begin, end - middle


def row(kind: str, work: Path, quick: bool) -> list[str]:
    """One line of the table, printed as soon as it is known."""
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
    cells = []
    for algo in ("ppo", "grpo"):
        run = work / f"{folder.name}_{algo}"
        more = [f"algo={algo}", f"actor.path={folder}", f"cache_dir={work / 'cache'}", f"hydra.run.dir={run}"]
        more += ["algo.group_size=4"] if algo == "grpo" else []
        with redirect_stdout(io.StringIO()):
            cells.append("yes" if dispatch(["train", *TRAIN, *more]) == 0 else "no")
    saved = work / f"{folder.name}_ppo" / "checkpoints" / "step_000001" / "actor"
    return [*cells, f"{reload_difference(saved):.0e}" if cells[0] == "yes" else "–"]


def page(rows: list[list[Any]], speeds: list[list[str]]) -> str:
    import platform

    import transformers

    head = ["kind", "way", "log-probs, entropies, values", "gradients", "PPO", "GRPO", "saved and loaded plainly"]
    if not any(cells[4] for cells in rows):  # --quick
        head, rows = head[:4], [cells[:4] for cells in rows]
    about = f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}, float32"
    text = INTRODUCTION + f"Made by `python scripts/families.py` ({about}).\n\n" + table(head, rows)
    if speeds:
        text += SPEED + table(["kind", "way", "sampling", "learning", "relative to qwen2"], speeds)
    return text


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


SPEED = f"""
## Speed

Seconds on one core for {ROWS} responses of {RESPONSE} tokens to prompts of {PROMPT}, sampled, then read with gradients:
four layers 256 wide in all families, measured in turns, the median of {ROUNDS}
rounds, with the lowest and highest ratio of a round: where these lie far apart the machine was busy.

"""


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
