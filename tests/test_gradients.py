"""The gradient of every loss against its closed form, derived on paper and written token by token, in float64.

No min, no clamp, no masked mean and no autograd on the expected side: nothing is shared with rlhf_cli.rl.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_cli.rl.divergences import entropy, full_kl, select_logprobs
from rlhf_cli.rl.losses import aggregation_total, kl_loss, pairwise_loss, policy_loss, value_loss

LENGTHS = (5, 3, 1, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
CONSTANT = 4 * 5.0
EPSILON, HIGH, DUAL, BETA = 0.2, 0.3, 1.5, 0.7
AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum", "sequence_total")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


NEW, OLD, REF, ADVANTAGES = (randn(4, 5, seed=seed) for seed in range(4))
OLD = NEW - 0.5 * OLD  # ratios on all sides of the clip


def weight(how: str, length: int) -> float:
    """What one token's loss counts in the whole."""
    match how:
        case "sequence_mean":
            return 1 / length / len(LENGTHS)
        case "token_mean":
            return 1 / sum(LENGTHS)
        case "sequence_sum":
            return 1 / CONSTANT
    return 1 / len(LENGTHS)


def by_token(slope: Callable[[int, int], float], how: str) -> Tensor:
    """The gradient whose entry of token (b, t) is `slope(b, t)` times the token's weight, and 0 in the padding."""
    gradient = torch.zeros(4, 5, dtype=torch.float64)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            gradient[b, t] = slope(b, t) * weight(how, length)
    return gradient


def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def over(how: str) -> dict[str, Any]:
    return {"aggregation": how, "total": aggregation_total(MASK, how=how, constant=CONSTANT)}


def ratio(b: int, t: int) -> float:
    return math.exp(float(NEW[b, t] - OLD[b, t]))


def clip_slope(rho: float, a: float) -> float:
    """The clip table: cut above with A > 0 and below with A < 0."""
    return 0.0 if (a > 0 and rho > 1 + HIGH) or (a < 0 and rho < 1 - EPSILON) else -rho * a


def dual_slope(rho: float, a: float) -> float:
    return 0.0 if a < 0 and rho > DUAL else clip_slope(rho, a)


SLOPES: list[tuple[dict[str, Any], Callable[[float, float], float]]] = [
    ({"surrogate": "clip", "epsilon_high": HIGH}, clip_slope),
    ({"surrogate": "clip", "epsilon_high": HIGH, "dual_clip": DUAL}, dual_slope),
    ({"surrogate": "ratio"}, lambda rho, a: -rho * a),
    ({"surrogate": "cispo", "epsilon_high": HIGH}, lambda rho, a: -min(rho, 1 + HIGH) * a),
    ({"surrogate": "policy_gradient"}, lambda rho, a: -a),
    # β (ρ − 1 − log ρ) and β (ρ log ρ − ρ + 1), by log ρ
    ({"surrogate": "kl_penalty", "beta_old": BETA}, lambda rho, a: -rho * a + BETA * (rho - 1)),
    (
        {"surrogate": "kl_penalty", "beta_old": BETA, "direction": "policy_old"},
        lambda rho, a: -rho * a + BETA * rho * math.log(rho),
    ),
]


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize(("options", "slope"), SLOPES, ids=[str(options) for options, _ in SLOPES])
def test_policy_loss(options: dict[str, Any], slope: Callable[[float, float], float], how: str) -> None:
    got = gradient_of(lambda x: policy_loss(x, OLD, ADVANTAGES, MASK, epsilon=EPSILON, **options, **over(how))[0], NEW)
    expected = by_token(lambda b, t: slope(ratio(b, t), float(ADVANTAGES[b, t])), how)
    torch.testing.assert_close(got, expected)


def test_the_ratios_are_on_all_sides_of_the_clip() -> None:
    tokens = [(ratio(b, t), float(ADVANTAGES[b, t])) for b, length in enumerate(LENGTHS) for t in range(length)]
    assert len({(rho > 1 + HIGH, rho < 1 - EPSILON, a > 0) for rho, a in tokens}) == 6


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_policy_loss_with_the_ratio_of_a_sequence(how: str) -> None:
    """s = exp(mean log ρ) of the row; each token's logprob moves it by s/n, and every token of the row feels that."""

    def slope(b: int, t: int) -> float:
        n = LENGTHS[b]
        s = math.exp(sum(math.log(ratio(b, k)) for k in range(n)) / n)
        return sum(clip_slope(s, float(ADVANTAGES[b, k])) for k in range(n)) / n

    options = {"surrogate": "clip", "epsilon": EPSILON, "epsilon_high": HIGH, "ratio_level": "sequence"}
    got = gradient_of(lambda x: policy_loss(x, OLD, ADVANTAGES, MASK, **options, **over(how))[0], NEW)
    torch.testing.assert_close(got, by_token(slope, how))


KL_SLOPES: dict[tuple[str, bool], Callable[[float, float], float]] = {  # of gap = log π/π_ref and ρ = π/π_old
    ("k1", False): lambda gap, rho: gap,  # k2's: its own would be 1, pure noise
    ("k2", False): lambda gap, rho: gap,
    ("k3", False): lambda gap, rho: 1 - math.exp(-gap),
    ("k1", True): lambda gap, rho: rho * (gap + 1),
    ("k2", True): lambda gap, rho: rho * (gap * gap / 2 + gap),
    ("k3", True): lambda gap, rho: rho * gap,
}


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize(("estimator", "weighted"), KL_SLOPES)
def test_kl_loss(estimator: str, weighted: bool, how: str) -> None:
    old = OLD if weighted else None
    got = gradient_of(lambda x: kl_loss(x, REF, MASK, estimator=estimator, old_logprobs=old, **over(how))[0], NEW)
    slope = KL_SLOPES[estimator, weighted]
    torch.testing.assert_close(got, by_token(lambda b, t: slope(float(NEW[b, t] - REF[b, t]), ratio(b, t)), how))


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss(clip: float | None, how: str) -> None:
    """V − R, but 0 where V has left V_old ± c and the clipped error is the larger."""

    def slope(b: int, t: int) -> float:
        value, old, target = (float(x[b, t]) for x in (NEW, OLD, REF))
        if clip is not None and abs(value - old) > clip:
            edge = old + math.copysign(clip, value - old)
            if abs(edge - target) > abs(value - target):
                return 0.0
        return value - target

    got = gradient_of(lambda x: value_loss(x, OLD, REF, MASK, clip=clip, **over(how))[0], NEW)
    torch.testing.assert_close(got, by_token(slope, how))


@pytest.mark.parametrize("average", ["prompts", "pairs"])
def test_pairwise_loss(average: str) -> None:
    """Each pair pulls its two scores apart with σ(−gap), over its prompt's pairs and the prompts, or over all pairs."""
    scores, groups = randn(9, seed=5), ((0, 1, 2, 3), (4, 5, 6), (7, 8))
    ranks = torch.tensor([0, 1, 2, 3, 1, 0, 1, 0, 0])  # a full order, a tie, and a prompt without a preference
    pairs = [[(a, b) for a in group for b in group if ranks[a] < ranks[b]] for group in groups]
    assert [len(found) for found in pairs] == [6, 2, 0]
    expected = torch.zeros(9, dtype=torch.float64)
    for found in pairs:
        for winner, loser in found:
            share = 1 / len(found) / 2 if average == "prompts" else 1 / 8
            pull = share / (1 + math.exp(float(scores[winner] - scores[loser])))
            expected[winner] -= pull
            expected[loser] += pull
    ids = torch.tensor([i for i, g in enumerate(groups) for _ in g])
    got = gradient_of(lambda x: pairwise_loss(x, ranks, ids, average=average)[0], scores)
    torch.testing.assert_close(got, expected)


def softmax(logits: Tensor) -> list[float]:
    powers = [math.exp(float(z)) for z in logits]
    return [power / sum(powers) for power in powers]


def test_what_comes_from_logits() -> None:
    """∂H/∂z = −p (log p + H);  ∂KL(p‖q)/∂z = p (log p/q − KL);  ∂KL(q‖p)/∂z = p − q;  ∂log p_y/∂z = (1_y − p)/T."""
    logits, ref = randn(6, seed=6), randn(6, seed=7)
    p, q = softmax(logits), softmax(ref)
    h = -sum(x * math.log(x) for x in p)
    kl = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    cooled = softmax(logits / 0.5)
    expected: list[tuple[Callable[[Tensor], Tensor], list[float]]] = [
        (entropy, [-x * (math.log(x) + h) for x in p]),
        (lambda z: full_kl(z, ref), [x * (math.log(x / y) - kl) for x, y in zip(p, q, strict=True)]),
        (lambda z: full_kl(z, ref, direction="ref_policy"), [x - y for x, y in zip(p, q, strict=True)]),
        (
            lambda z: select_logprobs(z, torch.tensor(2), temperature=0.5),
            [((v == 2) - x) / 0.5 for v, x in enumerate(cooled)],
        ),
    ]
    for function, gradient in expected:
        torch.testing.assert_close(gradient_of(function, logits), torch.tensor(gradient, dtype=torch.float64))
