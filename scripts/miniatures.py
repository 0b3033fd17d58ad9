"""What the miniature actors write, and how good the four are: docs/miniatures.md.

    python scripts/miniatures.py                             the shipped ones
    python scripts/miniatures.py --folder outputs/rebuilt    those that `rlhf models rebuild=true out=…` made
    python scripts/miniatures.py --install outputs/rebuilt   ship these (for maintainers), then the page

A response is garbled if a word of it stands in none of 60,000 generated reviews.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.engine.load import eos_ids, load_actor, load_tokenizer
from rlhf_cli.engine.sample import sample
from rlhf_cli.miniatures import actors
from rlhf_cli.miniatures.build import LONG, MINIATURES, SHIPPED
from rlhf_cli.rl.rollout import Prompts

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
PAGE = Path(__file__).parents[1] / "docs" / "miniatures.md"


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def prompts(rows: list[list[int]], pad: int) -> Prompts:
    """Left-padded."""
    width, count = max(map(len, rows)), torch.arange(len(rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return Prompts(ids, torch.tensor([len(row) for row in rows]), index=count, group=count)


def written(folder: Path, prefixes: list[str], seed: int) -> list[tuple[str, bool]]:
    """(response at temperature 1, whether it ended) to each prefix, asked for as a chat, as runs do by default."""
    device = torch.device("cpu")
    model, tokenizer = load_actor(str(folder), device=device), load_tokenizer(str(folder))
    asked = prompts([actors.CHAT.ids(tokenizer, prefix) for prefix in prefixes], tokenizer.pad_token_id)
    ends = eos_ids(model, tokenizer)
    rollout = sample(
        model, asked, eos_ids=ends, pad_id=tokenizer.pad_token_id, max_length=48, temperature=1.0, seed=seed, step=0
    )
    texts = tokenizer.batch_decode(rollout.responses, skip_special_tokens=True)
    return list(zip(texts, rollout.ended.tolist(), strict=True))


def share_garbled(responses: list[str], prefixes: list[str], known: set[str]) -> float:
    """Of the responses, read with their prefixes, of which the last word may go on in the response."""
    whole = [set(words(prefix + response)) for prefix, response in zip(prefixes, responses, strict=True)]
    return sum(not found <= known for found in whole) / len(whole)


def measure(folder: Path, prefixes: list[str], known: set[str]) -> tuple[dict[str, float], list[str]]:
    """({what: number}, some samples) of an actor."""
    found = written(folder, prefixes, seed=0)
    responses = [text for text, _ in found]
    numbers = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    numbers["responses without a garbled word"] = 1 - share_garbled(responses, prefixes, known)
    numbers["responses that end by themselves"] = sum(ended for _, ended in found) / len(found)
    return numbers, responses


def page(home: Path) -> str:
    reviews = generate_reviews(LONG.reviews, 0)
    known = {word for review in reviews for word in words(review.text)}
    held_out = generate_reviews(LONG.reviews + 100, 0)[LONG.reviews :]
    prefixes = [" ".join(review.text.split()[: 4 + i % 3]) for i, review in enumerate(held_out)]
    text = [
        "# The miniatures\n",
        "Four models of about a million parameters ship with rlhf, trained from random weights on reviews that it "
        "writes itself. They are a rehearsal: what they do says nothing about Qwen or RoBERTa. Each folder in "
        "`rlhf_cli/miniatures/shipped/` has a card; `rlhf models scale=mini rebuild=true` makes them anew. This page "
        "was written by `python scripts/miniatures.py`.\n",
    ]
    samples: dict[str, list[str]] = {}
    for name in MINIATURES:
        folder: Any = home / name
        if name.startswith("qwen"):
            numbers, samples[name] = measure(folder, prefixes, known)
        else:
            numbers = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        size = (folder / "model.safetensors").stat().st_size
        rows = "\n".join(f"| {what} | {value:.3g} |" for what, value in numbers.items())
        text.append(f"## {name}\n\n| | |\n|---|---|\n| megabytes | {size / 1e6:.2f} |\n{rows}\n")
    for name, responses in samples.items():
        text.append(f"## Twenty samples of {name}\n\nTemperature 1, the full softmax, seed 0, the first twenty.\n")
        text += [f"- **{p}** …{r}" for p, r in zip(prefixes[:20], responses[:20], strict=True)]
        text.append("")
    return "\n".join(text)


def install(home: Path) -> None:
    """Copy miniatures into the package."""
    for name in MINIATURES:
        shutil.rmtree(SHIPPED / name, ignore_errors=True)
        shutil.copytree(home / name, SHIPPED / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=SHIPPED)
    parser.add_argument("--install", type=Path)
    args = parser.parse_args()
    if args.install:
        install(args.install)
    text = page(args.folder)
    if args.folder == SHIPPED:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
