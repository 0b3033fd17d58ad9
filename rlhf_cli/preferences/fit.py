"""Training a reward model on ranked responses."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.preferences.ranked import RankedGroup
from rlhf_cli.rewards.learned import LearnedReward
from rlhf_cli.rewards.scorer import joined
from rlhf_cli.rl.losses import pairwise_loss


def collate(groups: list[RankedGroup]) -> tuple[list[str], Tensor, Tensor]:
    """(texts, ranks, group ids) of all responses."""
    texts = [joined(g.prompt, response) for g in groups for response in g.responses]
    ranks = torch.tensor([rank for g in groups for rank in g.ranks])
    ids = torch.tensor([i for i, g in enumerate(groups) for _ in g.responses])
    return texts, ranks, ids


def fit(
    reward: LearnedReward,
    groups: list[RankedGroup],
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    tick: Callable[[dict[str, float]], None],
) -> None:
    """−1/C(K,2) Σ log σ(r_w − r_l), all responses of a prompt in one forward pass (InstructGPT, eq. 1).

    `tick` gets each step's metrics; the model is in eval mode then, and what `tick` raises ends the fit.
    Raises RuntimeError where the loss is not finite.
    """
    with torch.random.fork_rng(devices=[reward.device] if reward.device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout is on: reproducible, and the global generator stays as it was
        rng = random.Random(f"{seed}/reward-train")
        learned = [p for p in reward.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.01)
        total, done = epochs * -(-len(groups) // batch), 0
        for _ in range(epochs):
            order = rng.sample(groups, len(groups))
            for at in range(0, len(order), batch):
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1.0, (done + 1) / 10) * (1 - 0.9 * done / total)
                reward.model.train()
                texts, ranks, ids = collate(order[at : at + batch])
                loss, metrics = pairwise_loss(reward.rewards(texts), ranks.to(reward.device), ids.to(reward.device))
                if not torch.isfinite(loss):
                    raise RuntimeError(f"the loss is not finite: lower the learning rate ({lr:g})")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(reward.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                reward.model.eval()
                done += 1
                right = float(metrics["correct"]) / max(1.0, float(metrics["pairs"]))
                tick({"step": done, "train/pairwise_loss": float(loss.detach()), "train/pairwise_accuracy": right})


@torch.no_grad()
def examine(reward: LearnedReward, groups: list[RankedGroup], *, bins: int = 10) -> tuple[dict[str, float], list[Any]]:
    """(metrics, calibration) on held-out groups.

    Calibration: for each bin of the predicted σ(r_a − r_b) ≥ ½, the mean prediction, how often a was ranked first, n.
    """
    texts, ranks, ids = collate(groups)
    scores = reward.raw(texts)
    loss, metrics = pairwise_loss(scores, ranks, ids)
    better, worse = ((ids[:, None] == ids) & (ranks[:, None] < ranks)).nonzero(as_tuple=True)
    sure = torch.sigmoid(scores[better] - scores[worse])
    right = sure > 0.5
    confidence = torch.where(right, sure, 1 - sure)
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    calibration = [
        {"predicted": float(confidence[inside].mean()), "observed": float(right[inside].float().mean()), "n": n}
        for i in range(bins)
        if (n := int((inside := index == i).sum()))
    ]
    error = sum(row["n"] * abs(row["predicted"] - row["observed"]) for row in calibration) / max(1, len(sure))
    return {
        "val/pairwise_loss": float(loss),
        "val/pairwise_accuracy": float(metrics["correct"]) / max(1.0, float(metrics["pairs"])),
        "val/calibration_error": error,
        "val/reward_mean": float(scores.mean()),
        "val/reward_std": float(scores.std()),
    }, calibration
