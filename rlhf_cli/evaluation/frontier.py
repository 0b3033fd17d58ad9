"""What could have been reached: reward against KL from samples of the untrained policy, and Gao et al.'s curves."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NOISE = 0.03
BELIEVABLE = 4.0
"""Samples a prompt that the weights of the optimal policy must be worth, for its estimate to mean anything."""


@dataclass(frozen=True)
class Point:
    kl: float
    reward: float
    gold: float | None


@dataclass(frozen=True)
class BestOfN(Point):
    n: int


@dataclass(frozen=True)
class Optimal(Point):
    beta: float
    ess: float
    """Effective samples a prompt, (Σw)² / Σw², the mean over prompts."""


def best_of_n_kl(n: int) -> float:
    """log n − (n − 1)/n: an upper bound on the KL of best-of-n, tight where no two responses are alike (Beirami et al.
    2024, arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def best_of_n(rewards: Float[Tensor, "P M"], gold: Float[Tensor, "P M"] | None, counts: list[int]) -> list[BestOfN]:
    """The expected reward of the best of n, and the gold score of the one that is best under the reward; the mean over
    prompts. Unbiased: of M samples in ascending order the i-th is the best of n random ones with probability
    C(i − 1, n − 1) / C(M, n) (Nakano et al. 2021, app. I). Counts above M are left out."""
    total = rewards.shape[1]
    ordered, order = rewards.double().sort(1)
    judged = None if gold is None else gold.double().gather(1, order)
    found = []
    for n in counts:
        if n > total:
            continue
        chance = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
        weights = torch.tensor(chance, dtype=torch.float64)
        at = None if judged is None else float((judged * weights).sum(1).mean())
        found.append(BestOfN(best_of_n_kl(n), float((ordered * weights).sum(1).mean()), at, n))
    return found


def optimal(rewards: Float[Tensor, "P M"], gold: Float[Tensor, "P M"] | None, betas: list[float]) -> list[Optimal]:
    """The policy that maximises E[r] − β KL, which is π_ref exp(r/β) / Z (Rafailov et al. 2023, eq. 4): the samples
    reweighted, the mean over prompts. KL = E[r]/β − log Z, both estimated from the same samples."""
    found = []
    for beta in betas:
        scaled = rewards.double() / beta
        log_weights = scaled.log_softmax(1)
        weights = log_weights.exp()
        kl = (weights * (log_weights + math.log(rewards.shape[1]))).sum(1)
        ess = 1 / weights.square().sum(1)
        at = None if gold is None else float((weights * gold.double()).sum(1).mean())
        reward = float((weights * rewards.double()).sum(1).mean())
        found.append(Optimal(float(kl.mean()), reward, at, beta, float(ess.mean())))
    return found


def plain(points: list[Any]) -> list[dict[str, Any]]:
    """For frontier.json."""
    return [asdict(point) for point in points]


@dataclass(frozen=True)
class Curve:
    """Gold over d = √KL of a policy that was trained: start + d (α − β log d) (Gao et al. 2022, eq. 2)."""

    start: float
    alpha: float
    beta: float

    def at(self, kl: float) -> float:
        d = math.sqrt(kl)
        return self.start + (d * (self.alpha - self.beta * math.log(d)) if d > 0 else 0.0)

    @property
    def peak(self) -> float | None:
        """The KL at which the curve turns; None where it does not within reason."""
        if self.beta <= 0:
            return None
        d = math.exp(min(20.0, self.alpha / self.beta - 1))
        return d * d


def fitted(kls: list[float], values: list[float]) -> Curve | None:
    """Least squares over the validations after the first, which is the start; None for fewer than three."""
    pairs = [(math.sqrt(kl), value - values[0]) for kl, value in zip(kls[1:], values[1:], strict=True) if kl > 1e-6]
    if len(pairs) < 3:
        return None
    d = torch.tensor([p[0] for p in pairs], dtype=torch.float64)
    y = torch.tensor([p[1] for p in pairs], dtype=torch.float64)
    solved = torch.linalg.lstsq(torch.stack([d, -d * d.log()], 1), y[:, None]).solution.squeeze(1)
    return Curve(values[0], float(solved[0]), float(solved[1]))


def past_the_peak(kls: list[float], golds: list[float]) -> bool:
    """Whether the fitted gold curve has turned before the last validation, and gold is below its best by more than two
    validations of a few hundred responses differ by chance."""
    curve = fitted(kls, golds)
    if curve is None or curve.peak is None or not curve.peak < kls[-1]:
        return False
    return golds[-1] < max(golds) - NOISE


def reached(point: Point, best: list[BestOfN]) -> float | None:
    """What share of the gain of best-of-n at the same KL a policy has; None where best-of-n was not that far."""
    for low, high in pairwise(best):
        if low.kl <= point.kl <= high.kl:
            share = (point.kl - low.kl) / max(1e-9, high.kl - low.kl)
            there = low.reward + share * (high.reward - low.reward)
            gain = there - best[0].reward
            return (point.reward - best[0].reward) / gain if gain > 0 else None
    return None
