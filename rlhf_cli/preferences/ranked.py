"""Ranked responses: what a reward model learns from."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.rewards.scorer import Texts


@dataclass(frozen=True, slots=True)
class RankedGroup:
    """K responses to one prompt; a smaller rank is better, equal ranks are ties."""

    prompt: str
    responses: list[str]
    ranks: list[int]


def ranked(texts: Texts, scores: list[float], size: int) -> list[RankedGroup]:
    """Groups of `size` neighbouring responses to one prefix, ranked by score; groups of equal scores are left out."""
    groups = []
    for row in range(0, len(scores), size):
        mine = scores[row : row + size]
        order = sorted(set(mine), reverse=True)
        if len(order) > 1:
            ranks = [order.index(score) for score in mine]
            groups.append(RankedGroup(texts.prefixes[row], texts.responses[row : row + size], ranks))
    return groups


def split(groups: list[RankedGroup], share: float, *, seed: int) -> tuple[list[RankedGroup], list[RankedGroup]]:
    """(training, held out): `share` of the PROMPTS is held out, with all their responses.

    Raises UserError where one side would be empty.
    """
    prompts = sorted({group.prompt for group in groups})
    held = max(1, round(share * len(prompts)))
    if held >= len(prompts):
        raise UserError(
            f"{len(prompts)} different prompts with a preference among their responses are too few to train on and "
            f"to hold out a share of {share:g}: give more (reward_train.prompts or reward_train.data), or a smaller "
            "reward_train.held_out"
        )
    chosen = set(random.Random(f"{seed}/held-out").sample(prompts, held))
    return [g for g in groups if g.prompt not in chosen], [g for g in groups if g.prompt in chosen]


def write_ranked(path: Path, groups: list[RankedGroup]) -> None:
    """What `read_ranked` reads, each group's best response first."""
    with path.open("w", encoding="utf-8") as file:
        for group in groups:
            best_first = sorted(zip(group.ranks, group.responses, strict=True), key=lambda pair: pair[0])
            ranks, responses = ([pair[i] for pair in best_first] for i in (0, 1))
            file.write(json.dumps({"prompt": group.prompt, "responses": responses, "ranks": ranks}) + "\n")


def read_ranked(path: str | Path) -> list[RankedGroup]:
    """A JSONL file of {"prompt": str, "responses": [best first], "ranks": [optional, one a response]}."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: no such file (JSONL with prompt and responses, best first)")
    groups = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            groups.append(_group(line, f"{path}, line {number}"))
    if not groups:
        raise UserError(f"{path} holds no ranked responses")
    return groups


def _group(line: bytes, where: str) -> RankedGroup:
    try:
        row: Any = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f'{where}: "prompt" must be a text')
    responses = row.get("responses")
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        raise UserError(f'{where}: "responses" must be a list of at least 2 texts, the best first')
    ranks = row.get("ranks", list(range(len(responses))))
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(r) is int for r in ranks):
        raise UserError(f'{where}: "ranks" must be {len(responses)} whole numbers, one a response')
    if len(set(ranks)) < 2:
        raise UserError(f"{where}: all ranks are equal, so nothing is preferred: drop the line")
    try:
        "".join([row["prompt"], *responses]).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a surrogate pair (\\ud800 to \\udfff) is no text") from None
    return RankedGroup(row["prompt"], responses, ranks)
