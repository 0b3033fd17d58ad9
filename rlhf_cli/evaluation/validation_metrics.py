"""Metrics of a policy on the test prompts: score by prefix class, repetition, diversity, KL, samples."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.data.reviews import SENTIMENTS
from rlhf_cli.evaluation.repetition import distinct, repetition
from rlhf_cli.rewards.scorer import Rewards, Texts
from rlhf_cli.rl.rollout import Experience


def validation_metrics(experience: Experience, texts: Texts, rewards: Rewards, classes: list[str]) -> dict[str, float]:
    """`val/*`: means over responses; by the PREFIX's class; perplexity of the responses under the reference."""
    rollout, mask = experience.rollout, experience.rollout.mask
    log_ratio = ((experience.old_logprobs - experience.ref_logprobs) * mask).sum(1)
    nll = -(experience.ref_logprobs * mask).sum() / mask.sum()
    metrics = {
        "val/score": float(rewards.score.mean()),
        "val/reward": float(rewards.reward.mean()),
        "val/kl": float(log_ratio.mean()),
        "val/perplexity": math.exp(min(float(nll), 50.0)),
        "val/repetition": sum(map(repetition, texts.responses)) / len(texts.responses),
        "val/distinct_1": distinct(texts.responses, 1),
        "val/distinct_2": distinct(texts.responses, 2),
        "val/response_length": float(rollout.lengths.float().mean()),
        "val/eos_rate": float(rollout.ended.float().mean()),
    }
    for name in SENTIMENTS:
        rows = torch.tensor([c == name for c in classes])
        if rows.any():
            metrics[f"val/score/{name}"] = float(rewards.score[rows].mean())
    metrics |= {f"val/penalty/{name}": float(part.mean()) for name, part in rewards.parts.items()}
    metrics |= {f"val/source/{name}": float(part.mean()) for name, part in rewards.sources.items()}
    return metrics


def sample_rows(
    texts: Texts, rewards: Rewards, classes: list[str], gold: dict[str, Float[Tensor, " B"]]
) -> list[dict[str, Any]]:
    """Rows of samples.jsonl (without the step); `gold`: parts that the gold judges add, by `gold_parts`."""
    return [
        {
            "prompt": texts.prompts[i],
            "prefix": texts.prefixes[i],
            "response": texts.responses[i],
            "class": classes[i],
            "score": float(rewards.score[i]),
            "parts": {name: float(part[i]) for name, part in (rewards.sources | rewards.parts | gold).items()},
        }
        for i in range(len(texts.responses))
    ]


def texts_of(rows: list[dict[str, Any]]) -> Texts:
    """Sample rows as what a reward reads; the tokens are not kept."""
    prefixes, prompts, responses = ([row[key] for row in rows] for key in ("prefix", "prompt", "response"))
    return Texts(prefixes, prompts, responses, [[] for _ in rows])


def gold_parts(scores: dict[str, Float[Tensor, " B"]]) -> dict[str, Float[Tensor, " B"]]:
    """What samples say of the gold judges: `gold`, the first's score, and of several each one's, `gold/<name>`."""
    if not scores:
        return {}
    each = {f"gold/{name}": score for name, score in scores.items()} if len(scores) > 1 else {}
    return {"gold": next(iter(scores.values()))} | each


def gold_of(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Sample rows' scores under each gold judge, the first one first; {} without one. A judge that is alone has the
    name `gold`: rows do not say which it was."""
    kept: list[dict[str, float]] = [row["parts"] for row in rows]
    named = [part for part in (kept[0] if kept else {}) if part.startswith("gold/")] or ["gold"]
    every = {part.removeprefix("gold/"): part for part in named if kept and all(part in parts for parts in kept)}
    return {name: [parts[part] for parts in kept] for name, part in every.items()}
