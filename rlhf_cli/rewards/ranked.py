"""Ranked responses: what a reward model learns from."""

import json
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
    """Groups of `size` neighbouring responses to one prefix, ranked by score; groups of equal scores say nothing."""
    groups = []
    for row in range(0, len(scores), size):
        mine = scores[row : row + size]
        order = sorted(set(mine), reverse=True)
        if len(order) > 1:
            ranks = [order.index(score) for score in mine]
            groups.append(RankedGroup(texts.prefixes[row], texts.responses[row : row + size], ranks))
    return groups


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
        row: Any = json.loads(line.decode())
    except ValueError as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f'{where}: "prompt" must be a text')
    responses = row.get("responses")
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(r, str) for r in responses):
        raise UserError(f'{where}: "responses" must be a list of at least 2 texts, the best first')
    ranks = row.get("ranks", list(range(len(responses))))
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(isinstance(r, int) for r in ranks):
        raise UserError(f'{where}: "ranks" must be {len(responses)} whole numbers, one a response')
    if len(set(ranks)) < 2:
        raise UserError(f"{where}: all ranks are equal, so nothing is preferred: drop the line")
    return RankedGroup(row["prompt"], responses, ranks)
