"""Numbers worked by hand and properties of the pure functions in rlhf_cli.rl."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_cli.rl.advantages import gae, group_advantages, leave_one_out, reward_to_go, token_rewards
from rlhf_cli.rl.controllers import AdaptiveKL, DoublingKL, FixedKL
from rlhf_cli.rl.divergences import entropy, full_kl, kl_estimate, select_logprobs
from rlhf_cli.rl.losses import (
    aggregate,
    aggregation_total,
    explained_variance,
    kl_loss,
    pairwise_loss,
    policy_loss,
    value_loss,
)
from rlhf_cli.rl.masked import masked_mean, masked_sum, masked_var, whiten

AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum")
LENGTHS = torch.tensor([5, 3, 1, 4, 5, 2])
MASK = torch.arange(5) < LENGTHS[:, None]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), atol=tolerance, rtol=tolerance)


def dirty(x: Tensor, mask: Tensor = MASK) -> Tensor:
    """NaN wherever nothing may be read."""
    return x.masked_fill(~mask, float("nan"))


# --- masked -------------------------------------------------------------------------------------------------------


def test_masked_statistics_by_hand() -> None:
    x, mask = rows([1, 2, 99], [6, 99, 99]), torch.tensor([[1.0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    close(masked_sum(x, mask), 9.0)
    close(masked_mean(x, mask), 3.0)
    close(masked_mean(x, mask, 1), rows([1.5, 6.0])[0])
    close(masked_var(x, mask), 7.0)
    close(masked_var(x, mask, ddof=0), 14 / 3)
    close(masked_mean(x, torch.zeros_like(mask)), 0.0)


def test_whitened_has_mean_0_and_variance_1() -> None:
    x = 3 + 7 * randn(6, 5)
    white = whiten(dirty(x), MASK, eps=0.0)
    close(masked_mean(white, MASK), 0.0)
    close(masked_var(white, MASK), 1.0)
    assert bool((white[~MASK] == 0).all())
    kept = whiten(x, MASK, shift_mean=False)
    close(masked_mean(kept, MASK), masked_mean(x, MASK))


def test_whiten_a_constant_is_0_and_a_floor_is_not_a_sum() -> None:
    assert whiten(torch.full((2, 3), 0.7, dtype=torch.float64), torch.ones(2, 3), ddof=1).abs().max() < 1e-6
    x, mask = rows([-1e-4, 1e-4]), torch.ones(1, 2)
    close(whiten(x, mask, ddof=0, eps=1e-8), rows([-1, 1]) / math.sqrt(2))
    close(whiten(x, mask, ddof=0, eps=1e-8, floor=True), rows([-1, 1]))


# --- advantages ---------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # γ=½, λ=½. δ3 = 8−4 = 4; δ2 = 0+½·4−2 = 0; δ1 = 1+½·2−1 = 1.  A3 = 4; A2 = 0+¼·4 = 1; A1 = 1+¼·1 = 1.25
    advantages, returns = gae(rows([1, 0, 8]), rows([1, 2, 4]), torch.ones(1, 3), gamma=0.5, lam=0.5)
    close(advantages, rows([1.25, 1, 4]))
    close(returns, rows([2.25, 3, 8]))


def test_gae_skips_a_masked_token_inside_a_response() -> None:
    mask = torch.tensor([[True, False, True, True]])
    inside = gae(rows([1, 9, 0, 8]), rows([1, 9, 2, 4]), mask, gamma=0.5, lam=0.5)[0]
    close(inside, rows([1.25, 0, 1, 4]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_limits_of_lambda(gamma: float) -> None:
    rewards, values = randn(6, 5) * MASK, randn(6, 5, seed=1) * MASK
    following = torch.cat([values[:, 1:], torch.zeros(6, 1, dtype=torch.float64)], 1)
    one_step = (rewards + gamma * following - values) * MASK
    assert torch.equal(gae(rewards, values, MASK, gamma=gamma, lam=0.0)[0], one_step)
    monte_carlo = torch.zeros_like(rewards)
    for t in range(5):
        for k in range(t, 5):
            monte_carlo[:, t] += gamma ** (k - t) * rewards[:, k]
    close(reward_to_go(rewards, MASK, gamma=gamma), monte_carlo * MASK)
    advantages, returns = gae(rewards, values, MASK, gamma=gamma, lam=1.0)
    close(advantages, (monte_carlo - values) * MASK)
    close(returns, monte_carlo * MASK)


def test_the_discount_counts_from_t() -> None:
    """Erratum: the return at t ends in γ^(T−t) r_T, not in γ^T r_T."""
    close(reward_to_go(rows([0, 0, 8]), torch.ones(1, 3), gamma=0.5), rows([2, 4, 8]))


def test_a_delta_without_the_reward_misses_the_kl_in_it() -> None:
    """Erratum: with −β·KL on every token, δ = γV' − V is wrong before the last token too."""
    rewards = token_rewards(torch.tensor([1.0]), torch.tensor([[0.5, 0.25, 0.0]]), torch.ones(1, 3), beta=2.0)
    close(rewards, torch.tensor([[-1.0, -0.5, 1.0]]))
    advantages, _ = gae(rewards, torch.zeros(1, 3), torch.ones(1, 3), gamma=1.0, lam=0.0)
    close(advantages, rewards)


def test_the_score_lands_on_the_last_token() -> None:
    kl = torch.full((3, 3), 0.5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    got = token_rewards(rows([3, 4, 5])[0], dirty(kl, mask), mask, beta=0.2)
    close(got, rows([-0.1, 2.9, 0], [-0.1, -0.1, 3.9], [0, 0, 0]))
    close(token_rewards(rows([3, 4, 5])[0], None, mask, beta=0.2), rows([0, 3, 0], [0, 0, 4], [0, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.7, 0.337, 0.9, 1e-4, 1000.1])
def test_a_constant_group_gets_exactly_0(dtype: torch.dtype, value: float) -> None:
    scores, group = torch.full((7,), value, dtype=dtype), torch.tensor([3, 3, 3, 3, 3, 3, 1])
    for got in (
        group_advantages(scores, group, scale="std"),
        group_advantages(scores, group, scale="none"),
        leave_one_out(scores, group),
    ):
        assert got.dtype == dtype
        assert bool((got == 0).all())


def test_group_advantages_by_hand() -> None:
    scores, group = rows([1, 10, 3, 20, 5])[0], torch.tensor([7, 2, 7, 2, 7])
    close(group_advantages(scores, group, scale="none"), rows([-2, -5, 0, 5, 2])[0])
    close(group_advantages(scores, group, scale="std", eps=0.0), rows([-1, -(0.5**0.5), 0, 0.5**0.5, 1])[0])
    close(leave_one_out(scores, group), rows([-3, -10, 0, 10, 3])[0])


def test_a_small_spread_in_float16_does_not_blow_up() -> None:
    scores = torch.tensor([0, 0, 0, 1e-4], dtype=torch.float16)  # its square is below float16's smallest number
    assert group_advantages(scores, torch.zeros(4).long(), scale="std").abs().max() < 2


# --- policy loss --------------------------------------------------------------------------------------------------

CLIP_TABLE = [  # ρ, A, loss −min(ρA, clip(ρ)A), gradient in log π (−ρA, or 0 where it is cut), cut
    (0.5, 2.0, -1.0, -1.0, False),
    (0.5, -2.0, 1.6, 0.0, True),
    (1.0, 2.0, -2.0, -2.0, False),
    (1.0, -2.0, 2.0, 2.0, False),
    (1.5, 2.0, -2.4, 0.0, True),
    (1.5, -2.0, 3.0, 3.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "value", "gradient", "cut"), CLIP_TABLE)
def test_clip_table(ratio: float, advantage: float, value: float, gradient: float, cut: bool) -> None:
    logprobs = rows([math.log(ratio) - 1]).requires_grad_()
    loss, metrics = policy_loss(
        logprobs,
        rows([-1]),
        rows([advantage]),
        torch.ones(1, 1),
        surrogate="clip",
        epsilon=0.2,
        aggregation="token_mean",
        total=1.0,
    )
    close(loss.detach(), value)
    close(torch.autograd.grad(loss, logprobs)[0], rows([gradient]))
    close(metrics["clipfrac"], float(cut))
    close(metrics["ratio_max"], ratio)
    close(metrics["approx_kl"], ratio - 1 - math.log(ratio))
    # where a gradient is left, a step against it moves the ratio the way the advantage says
    assert cut or math.copysign(1, -gradient) == math.copysign(1, advantage)


def surrogate_options() -> list[dict[str, Any]]:
    return [
        {"surrogate": "clip"},
        {"surrogate": "clip", "epsilon_high": 0.5},
        {"surrogate": "clip", "dual_clip": 1.5},
        {"surrogate": "clip", "ratio_level": "sequence"},
        {"surrogate": "kl_penalty", "beta_old": 0.7},
        {"surrogate": "kl_penalty", "beta_old": 0.7, "direction": "policy_old"},
        {"surrogate": "ratio"},
        {"surrogate": "policy_gradient"},
    ]


def every_surrogate() -> list[dict[str, Any]]:
    """With cispo, of which finite differences know nothing: its weight is a constant."""
    return [*surrogate_options(), {"surrogate": "cispo", "epsilon_high": 1.0}]


def actor(logprobs: Tensor, options: dict[str, Any], pick: slice = slice(None), **more: Any) -> Any:
    chosen = {"epsilon": 0.2, "aggregation": "token_mean", "total": 20.0} | options | more
    old, advantages = dirty(logprobs.detach() - 0.5 * randn(6, 5, seed=3)), dirty(randn(6, 5, seed=4))
    return policy_loss(logprobs[pick], old[pick], advantages[pick], MASK[pick], **chosen)


def test_dual_clip_by_hand() -> None:
    # ρ=4, A=−1: the clipped loss is 4, the bound 3; the gradient is cut, and counted apart from clipfrac
    logprobs = rows([math.log(4.0)]).requires_grad_()
    loss, metrics = policy_loss(
        logprobs,
        rows([0]),
        rows([-1]),
        torch.ones(1, 1),
        surrogate="clip",
        epsilon=0.2,
        dual_clip=3.0,
        aggregation="token_mean",
        total=1.0,
    )
    close(loss.detach(), 3.0)
    close(torch.autograd.grad(loss, logprobs)[0], rows([0]))
    assert (float(metrics["clipfrac"]), float(metrics["clipfrac_dual"])) == (0.0, 1.0)


def test_unclipped_surrogates_cut_nothing() -> None:
    for options in surrogate_options()[4:]:
        assert float(actor(randn(6, 5), options)[1]["clipfrac"]) == 0


def test_at_ratio_1_every_surrogate_has_the_policy_gradient() -> None:
    advantages = randn(6, 5, seed=4)
    for options in every_surrogate():
        if options.get("ratio_level") == "sequence":
            continue  # each token gets 1/|o| of its response's gradient
        logprobs = randn(6, 5).requires_grad_()
        loss, metrics = policy_loss(
            logprobs,
            logprobs.detach(),
            advantages,
            MASK,
            **({"epsilon": 0.2, "aggregation": "token_mean", "total": 20.0} | options),
        )
        close(torch.autograd.grad(loss, logprobs)[0], -advantages * MASK / 20)
        assert float(metrics["ratio_max"]) == 1
        assert float(metrics["approx_kl"]) == 0


def test_an_absurd_ratio_stays_finite() -> None:
    logprobs = torch.tensor([[-1.0, -500.0]]).requires_grad_()
    for advantages in ([[0.0, 0.0]], [[1.0, -1.0]], [[-1.0, 1.0]]):
        for options in every_surrogate():
            chosen = {"epsilon": 0.2, "aggregation": "token_mean", "total": 2.0} | options
            old = torch.tensor([[-500.0, -1.0]])
            loss, _ = policy_loss(logprobs, old, torch.tensor(advantages), torch.ones(1, 2), **chosen)
            assert bool(loss.isfinite())
            assert bool(torch.autograd.grad(loss, logprobs)[0].isfinite().all())


@pytest.mark.parametrize("options", surrogate_options(), ids=str)
def test_policy_gradients_against_finite_differences(options: dict[str, Any]) -> None:
    fixed = randn(6, 5)
    old, advantages = fixed - 0.5 * randn(6, 5, seed=3), randn(6, 5, seed=4)

    def loss(logprobs: Tensor) -> Tensor:
        chosen = {"epsilon": 0.2, "aggregation": "sequence_mean", "total": 6.0} | options
        return policy_loss(logprobs, old, advantages, MASK, **chosen)[0]

    assert torch.autograd.gradcheck(loss, fixed.clone().requires_grad_())


@pytest.mark.parametrize("high", [None, 0.5])
def test_the_clipped_loss_against_its_cases_written_out(high: float | None) -> None:
    """An independent formula: the branches of the clip table, token by token, with no min and no clamp."""
    old, advantages = randn(6, 5) - 0.5 * randn(6, 5, seed=3), randn(6, 5, seed=4)
    logprobs, again = (randn(6, 5).requires_grad_() for _ in range(2))
    expected = torch.zeros((), dtype=torch.float64)
    top = 1.2 if high is None else 1 + high
    for b, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            rho, advantage = (again[b, t] - old[b, t]).exp(), advantages[b, t]
            if advantage > 0 and rho > top:
                rho = torch.tensor(top, dtype=torch.float64)
            if advantage < 0 and rho < 0.8:
                rho = torch.tensor(0.8, dtype=torch.float64)
            expected = expected - rho * advantage / length / 6
    loss, _ = policy_loss(
        logprobs,
        old,
        advantages,
        MASK,
        surrogate="clip",
        epsilon=0.2,
        epsilon_high=high,
        aggregation="sequence_mean",
        total=6.0,
    )
    close(loss.detach(), expected.detach())
    close(torch.autograd.grad(loss, logprobs)[0], torch.autograd.grad(expected, again)[0])


# --- value loss ---------------------------------------------------------------------------------------------------


def test_value_loss_by_hand() -> None:
    # V=2, V_old=0, R=3, c=½: ½·max((2−3)², (½−3)²) = 3.125, cut.  V=1, R=0: ½·max(1, ¼) = ½, not cut
    values = rows([2, 1]).requires_grad_()
    options = {"aggregation": "token_mean", "total": 1.0}
    mask = torch.ones(1, 2)
    loss, metrics = value_loss(values, rows([0, 0]), rows([3, 0]), mask, clip=0.5, **options)
    close(loss.detach(), 3.625)
    close(torch.autograd.grad(loss, values)[0], rows([0, 1]))
    assert float(metrics["value_clipfrac"]) == 1
    loss, metrics = value_loss(values, rows([0, 0]), rows([3, 0]), mask, clip=None, **options)
    close(loss.detach(), 1.0)
    close(torch.autograd.grad(loss, values)[0], rows([-1, 1]))
    assert float(metrics["value_clipfrac"]) == 0


@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_gradients_against_finite_differences(clip: float | None) -> None:
    old, returns = randn(6, 5, seed=1), randn(6, 5, seed=2)

    def loss(values: Tensor) -> Tensor:
        return value_loss(values, old, returns, MASK, clip=clip, aggregation="sequence_mean", total=6.0)[0]

    assert torch.autograd.gradcheck(loss, randn(6, 5).requires_grad_())


def test_explained_variance() -> None:
    returns = randn(6, 5)
    close(explained_variance(dirty(returns), dirty(returns), MASK), 1.0)
    close(explained_variance(torch.zeros_like(returns), returns, MASK), 0.0)
    close(explained_variance(2 * returns, returns, MASK), 0.0)
    close(explained_variance(-returns, returns, MASK), -3.0)
    close(explained_variance(returns, torch.ones_like(returns), MASK), 0.0)


# --- aggregation --------------------------------------------------------------------------------------------------


def test_aggregations_by_hand() -> None:
    x, mask = rows([1, 3], [8, 99], [99, 99]), torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()
    totals = {how: aggregation_total(mask, how=how, constant=6.0) for how in AGGREGATIONS}
    assert totals == {"sequence_mean": 2.0, "token_mean": 3.0, "sequence_sum": 6.0}
    got = [float(aggregate(x, mask, how=how, total=totals[how])) for how in AGGREGATIONS]
    assert got == [5.0, 4.0, 2.0]


def losses_of(logprobs: Tensor, how: str, pick: slice) -> Tensor:
    """Every loss at once, on some rows of the minibatch, over the minibatch's own total."""
    options = {"aggregation": how, "total": aggregation_total(MASK, how=how, constant=30.0)}
    policy = actor(logprobs, {"surrogate": "clip"}, pick, **options)[0]
    other, mask = dirty(randn(6, 5, seed=7))[pick], MASK[pick]
    value = value_loss(logprobs[pick], other, other + 1, mask, clip=0.2, **options)[0]
    penalty = kl_loss(logprobs[pick], other, mask, estimator="k3", **options)[0]
    return policy + value + penalty


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up(how: str, size: int) -> None:
    whole, split = (dirty(randn(6, 5)).requires_grad_() for _ in range(2))
    loss = losses_of(whole, how, slice(None))
    loss.backward()
    parts = 0.0
    for at in range(0, 6, size):
        part = losses_of(split, how, slice(at, at + size))
        part.backward()
        parts += float(part.detach())
    assert whole.grad is not None
    assert split.grad is not None
    close(loss.detach(), parts)
    close(split.grad, whole.grad)


# --- padding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_garbage_in_the_padding_changes_nothing(how: str, estimator: str) -> None:
    def everything(clean: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        parameter = randn(6, 5).requires_grad_()
        x = clean(parameter)
        a, b, c = (clean(randn(6, 5, seed=seed)) for seed in (1, 2, 3))
        options = {"aggregation": how, "total": 3.0}
        losses = [policy_loss(x, a, b, MASK, epsilon=0.2, **one, **options)[0] for one in every_surrogate()]
        losses += [value_loss(x, a, b, MASK, clip=clip, **options)[0] for clip in (None, 0.2)]
        losses += [kl_loss(x, a, MASK, estimator=estimator, old_logprobs=old, **options)[0] for old in (None, b)]
        pure = [*gae(a, b, MASK, gamma=0.9, lam=0.8), whiten(a, MASK), reward_to_go(a, MASK, gamma=0.9)]
        pure += [token_rewards(c[:, 0], b, MASK, beta=0.1), explained_variance(a, b, MASK)]
        gradient = torch.autograd.grad(torch.stack(losses).sum(), parameter)[0]
        return [loss.detach() for loss in losses] + pure, gradient

    with_zeros, gradient = everything(lambda x: x.masked_fill(~MASK, 0))
    with_garbage, dirty_gradient = everything(dirty)
    for one, other in zip(with_zeros, with_garbage, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(gradient, dirty_gradient)
    assert bool((gradient[~MASK] == 0).all())


# --- divergences --------------------------------------------------------------------------------------------------

POLICY, REFERENCE, OLD = randn(4, seed=11), randn(4, seed=12), randn(4, seed=13)
EXACT = full_kl(POLICY, REFERENCE)


def expectation(values: Tensor, logits: Tensor = POLICY) -> Tensor:
    """E over all four tokens: no sampling, no noise."""
    return (logits.softmax(-1).detach() * values).sum()


def test_estimators_against_the_exact_kl() -> None:
    logprobs, ref = POLICY.log_softmax(-1), REFERENCE.log_softmax(-1)
    close(
        EXACT,
        torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (POLICY, REFERENCE))),
    )
    for estimator in ("k1", "k3"):
        close(expectation(kl_estimate(logprobs, ref, estimator=estimator)), EXACT)
    assert abs(float(expectation(kl_estimate(logprobs, ref, estimator="k2")) - EXACT)) > 1e-3
    assert bool((kl_estimate(logprobs, ref, estimator="k3") >= 0).all())
    without_the_one = expectation((ref - logprobs).exp() + logprobs - ref)
    close(without_the_one, EXACT + 1)


def exact_gradient(direction: str = "policy_ref") -> Tensor:
    logits = POLICY.clone().requires_grad_()
    return torch.autograd.grad(full_kl(logits, REFERENCE, direction=direction), logits)[0]


def expected_gradient(estimator: str, **options: Any) -> Tensor:
    """Of `kl_loss`, over all tokens weighted by how often the sampling policy draws them."""
    logits = POLICY.clone().requires_grad_()
    logprobs, ref = logits.log_softmax(-1)[:, None], REFERENCE.log_softmax(-1)[:, None]
    sampler = options.pop("sampler", POLICY)
    gradient = torch.zeros(4, dtype=torch.float64)
    for token, weight in enumerate(sampler.softmax(-1)):
        row = slice(token, token + 1)
        old = {"old_logprobs": sampler.log_softmax(-1)[row, None]} if options.get("weighted") else {}
        loss, _ = kl_loss(
            logprobs[row],
            ref[row],
            torch.ones(1, 1),
            estimator=estimator,
            aggregation="token_mean",
            total=1.0,
            **old,
        )
        gradient += weight * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    return gradient


def test_gradients_of_the_kl_as_a_loss() -> None:
    close(expected_gradient("k1"), exact_gradient())  # k2's: its own would be 0
    close(expected_gradient("k2"), exact_gradient())
    close(expected_gradient("k3"), exact_gradient("ref_policy"))  # the other direction's
    for estimator in ("k1", "k3"):
        close(expected_gradient(estimator, weighted=True), exact_gradient())
        close(expected_gradient(estimator, weighted=True, sampler=OLD), exact_gradient())  # off policy too
    logits = POLICY.clone().requires_grad_()
    plain_k1 = expectation(kl_estimate(logits.log_softmax(-1), REFERENCE.log_softmax(-1), estimator="k1"))
    close(torch.autograd.grad(plain_k1, logits)[0], torch.zeros(4))


def test_kl_loss_keeps_the_value_of_its_estimator_and_spares_the_reference() -> None:
    logprobs, ref = randn(6, 5).requires_grad_(), randn(6, 5, seed=1).requires_grad_()
    for estimator in ("k1", "k2", "k3"):
        loss, metrics = kl_loss(logprobs, ref, MASK, estimator=estimator, aggregation="token_mean", total=20.0)
        expected = masked_sum(kl_estimate(logprobs, ref, estimator=estimator), MASK).detach()
        close(metrics["kl"], expected)
        close(loss.detach(), expected / 20)
        assert torch.autograd.grad(loss, ref, allow_unused=True)[0] is None


@pytest.mark.parametrize("direction", ["old_policy", "policy_old"])
def test_the_penalty_of_ppo_kl_is_exact_in_value_and_gradient(direction: str) -> None:
    # tokens come from the old policy: each weighs as often as it would be drawn
    logits = POLICY.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for token, weight in enumerate(OLD.softmax(-1)):
        loss, _ = policy_loss(
            logits.log_softmax(-1)[None],
            OLD.log_softmax(-1)[None],
            torch.zeros(1, 4, dtype=torch.float64),
            (torch.arange(4) == token)[None],
            surrogate="kl_penalty",
            epsilon=0.2,
            beta_old=1.0,
            direction=direction,
            aggregation="token_mean",
            total=1.0,
        )
        total = total + weight * loss
    exact = full_kl(OLD, logits) if direction == "old_policy" else full_kl(logits, OLD)
    close(total.detach(), exact.detach())
    close(torch.autograd.grad(total, logits)[0], torch.autograd.grad(exact, logits)[0])


@pytest.mark.parametrize(("estimator", "edge"), [("k1", 10.0), ("k2", 10.0), ("k3", 10.0)])
def test_a_limit_cuts_value_and_gradient(estimator: str, edge: float) -> None:
    logprobs = torch.tensor([-500.0, 500.0, 1.0]).requires_grad_()
    plain = kl_estimate(logprobs, torch.zeros(3), estimator=estimator)
    cut = kl_estimate(logprobs, torch.zeros(3), estimator=estimator, limit=edge)
    assert cut.abs().tolist()[:2] == [edge, edge]
    close(cut[2].detach(), float(plain[2]), 1e-6)
    assert torch.autograd.grad(cut.sum(), logprobs)[0][:2].tolist() == [0, 0]


def test_k3_is_accurate_near_0() -> None:
    tiny = torch.tensor([1e-4])
    got = kl_estimate(tiny, torch.zeros(1), estimator="k3")
    assert float(got) == pytest.approx(5e-9, rel=0.5)
    assert float(kl_estimate(tiny.double(), torch.zeros(1).double(), estimator="k3")) == pytest.approx(5e-9, rel=1e-3)


def test_entropy_and_logprobs() -> None:
    close(entropy(torch.zeros(2, 8, dtype=torch.float64)), torch.full((2,), math.log(8), dtype=torch.float64))
    logits, labels = rows([0, math.log(4.0)]), torch.tensor([1])
    close(select_logprobs(logits, labels), rows([math.log(0.8)])[0])
    close(select_logprobs(logits, labels, temperature=0.5), rows([math.log(16 / 17)])[0])
    assert torch.autograd.gradcheck(entropy, randn(2, 5).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: full_kl(x, randn(2, 5, seed=1)), randn(2, 5).requires_grad_())


# --- reward model -------------------------------------------------------------------------------------------------


def test_pairwise_loss_divides_by_the_number_of_pairs() -> None:
    """Erratum: K=3 ranked responses make C(3,2)=3 pairs; K/2 would be 1.5."""
    scores, rank = torch.zeros(3, dtype=torch.float64), torch.tensor([0, 1, 2])
    loss, metrics = pairwise_loss(scores, rank, torch.zeros(3).long())
    close(loss, math.log(2))
    assert float(metrics["pairs"]) == 3


def test_pairwise_loss_by_hand() -> None:
    scores = rows([2, 0, 1, 1, 5])[0]
    rank, group = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([4, 4, 4, 9, 9])
    s = [math.log1p(math.exp(-gap)) for gap in (2.0, 1.0)]
    loss, metrics = pairwise_loss(scores, rank, group)
    close(loss, sum(s) / 2)  # prompt 9 is all ties: it has no pair and does not count
    close(metrics["per_prompt"], rows([sum(s) / 2, 0])[0])
    assert (float(metrics["correct"]), float(metrics["pairs"])) == (2.0, 2.0)
    close(pairwise_loss(scores[3:], rank[3:], group[3:])[0], 0.0)


@pytest.mark.parametrize("average", ["prompts", "pairs"])
def test_pairwise_gradients_against_finite_differences(average: str) -> None:
    rank, group = torch.tensor([0, 2, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    assert torch.autograd.gradcheck(
        lambda s: pairwise_loss(s, rank, group, average=average)[0], randn(5).requires_grad_()
    )


# --- controllers --------------------------------------------------------------------------------------------------


def test_controllers() -> None:
    adaptive = AdaptiveKL(0.2, target=6.0, horizon=1000)
    adaptive.update(6.6, 100)  # error 0.1 over a tenth of the horizon
    assert adaptive.value == pytest.approx(0.2 * 1.01)
    adaptive.update(600.0, 100)  # error clipped to 0.2
    assert adaptive.value == pytest.approx(0.2 * 1.01 * 1.02)
    again = AdaptiveKL(0.9, target=6.0, horizon=1000)
    again.load_state_dict(adaptive.state_dict())
    assert again == adaptive
    small = AdaptiveKL(0.03, target=6.0, horizon=1)
    small.update(0.0, 8)  # 1 − 0.2 · 8 = −0.6 would make it negative: halved instead
    assert small.value == 0.015
    small.update(600.0, 8)  # 1 + 0.2 · 8 = 2.6: doubled instead
    assert small.value == 0.03
    for steady in (AdaptiveKL(0.03, target=6.0, horizon=1), DoublingKL(0.5, target=0.01)):
        for kl in (0.0, 600.0):
            for _ in range(2000):
                steady.update(kl, 8)
                assert 0 < steady.value < math.inf
    fixed = FixedKL(0.3)
    fixed.update(100.0, 100)
    assert fixed.value == 0.3


# --- dtypes and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    x, y = randn(6, 5).to(dtype), randn(6, 5, seed=1).to(dtype)
    for mask in (MASK, MASK.double()):
        outputs = [*gae(x, y, mask, gamma=0.9, lam=0.9), whiten(x, mask), masked_mean(x, mask, 1)]
        outputs += [token_rewards(x[:, 0], y, mask, beta=0.1), masked_var(x, mask)]
        for how in AGGREGATIONS:
            options = {"aggregation": how, "total": 6.0}
            outputs.append(policy_loss(x, y, x, mask, surrogate="clip", epsilon=0.2, **options)[0])
            outputs.append(value_loss(x, y, x, mask, clip=0.2, **options)[0])
            outputs.append(kl_loss(x, y, mask, estimator="k3", **options)[0])
        assert {out.dtype for out in outputs} == {dtype}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    x = torch.zeros(1, 1)
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(x, x, estimator="k4")
    with pytest.raises(ValueError, match="token_mean"):
        aggregate(x, one, how="mean", total=1.0)
    with pytest.raises(ValueError, match="kl_penalty"):
        policy_loss(x, x, x, one, surrogate="ppo", epsilon=0.2, aggregation="token_mean", total=1.0)
    with pytest.raises(ValueError, match="std or none"):
        group_advantages(x[0], torch.zeros(1).long(), scale="variance")
