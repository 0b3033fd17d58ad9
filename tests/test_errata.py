"""The errata of docs/errata.md that have no test elsewhere: the wrong formula fails where the right one holds."""

import math

import pytest
import torch

from rlhf_cli.rl.advantages import gae
from rlhf_cli.rl.divergences import entropy, full_kl, kl_estimate
from rlhf_cli.rl.losses import aggregate, aggregation_total, kl_loss, policy_loss

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_k3_needs_its_minus_1() -> None:
    exact = float(full_kl(P.log(), Q.log()))
    k3 = kl_estimate(P.log(), Q.log(), estimator="k3")
    assert float((P * k3).sum()) == pytest.approx(exact)
    without = Q / P - (Q / P).log()
    torch.testing.assert_close(without, k3 + 1)
    assert float((P * without).sum()) == pytest.approx(exact + 1)


def test_the_kl_is_averaged_like_the_surrogate() -> None:
    """Two responses, of 1 and of 4 tokens, each token k2 = 0.5 from the reference: the KL term is 0.5, not 2.5 / 2."""
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    given = {"estimator": "k2", "total": 2.0}
    averaged, _ = kl_loss(mask * 0.0, mask * -1.0, mask, aggregation="sequence_mean", **given)
    assert float(averaged) == pytest.approx(0.5)
    summed, _ = kl_loss(mask * 0.0, mask * -1.0, mask, aggregation="sequence_total", **given)
    assert float(summed) == pytest.approx(2.5 / 2)


def test_kl_and_entropy_count_response_tokens_only() -> None:
    """Four positions of two logits: prompt, two response tokens, padding. A mean over all is another number."""
    response = torch.tensor([[False, True, True, False]])
    logits, ref = torch.zeros(1, 4, 2), torch.tensor([[[9.0, 0], [1, 0], [1, 0], [9, 0]]])
    total = aggregation_total(response, how="token_mean", constant=1.0)
    mean = {"how": "token_mean", "total": total}
    assert float(aggregate(entropy(logits), response, **mean)) == pytest.approx(math.log(2))
    kl = aggregate(full_kl(logits, ref), response, **mean)
    assert float(kl) == pytest.approx(float(full_kl(torch.zeros(2), torch.tensor([1.0, 0]))))
    assert float(full_kl(logits, ref).mean()) > 10 * float(kl)  # prompt and padding, where the policy chose nothing


def test_nothing_follows_the_last_token() -> None:
    """V after the end is 0, whatever the critic says there: the last δ is r_T − V_T."""
    rewards, values = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.25, 7.0]])
    advantages, _ = gae(rewards, values, torch.tensor([[True, True, False]]), gamma=1.0, lam=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-0.25, 0.75, 0.0]]))
    longer, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.0)
    assert float(longer[0, 1]) == 1 + 7 - 0.25  # what bootstrapping past the end would give


def test_the_lambda_sum_loses_weight_at_a_finite_horizon() -> None:
    lam, rewards, values = 0.9, torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)
    right = float(gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=lam)[0][0, 0])
    assert right == pytest.approx(lam**2)  # the δ recursion: Σ (γλ)^k δ_(t+k)
    ends = [(rewards[:, :n], values[:, :n], torch.ones(1, n)) for n in (1, 2, 3)]
    n_step = [float(gae(*end, gamma=1.0, lam=1.0)[0][0, 0]) for end in ends]  # A^(n), all values being 0
    wrong = sum((1 - lam) * lam**n * a for n, a in enumerate(n_step))
    assert wrong == pytest.approx((1 - lam) * right)  # a tenth of what it should be
    whole = wrong + lam**3 * n_step[-1]  # the lost weight belongs to the last term
    assert whole == pytest.approx(right)


def test_the_weight_is_target_over_sampler() -> None:
    """policy_loss weighs samples of the old policy q to speak of p: its mean under q is −E_p[f]."""
    f = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    wanted = (P * f).sum()

    def per_arm(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        arms = [(new.log()[i].view(1, 1), old.log()[i].view(1, 1)) for i in range(3)]
        one = torch.ones(1, 1, dtype=torch.float64)
        how = {"surrogate": "ratio", "epsilon": 0.2, "aggregation": "sequence_mean", "total": 1.0}
        return torch.stack([policy_loss(*arm, f[i].view(1, 1), one, **how)[0] for i, arm in enumerate(arms)])

    torch.testing.assert_close((Q * per_arm(P, Q)).sum(), -wanted)
    assert abs(float((Q * per_arm(Q, P)).sum() + wanted)) > 1  # with p and q swapped
    whole, _ = policy_loss(
        P.log()[:, None], Q.log()[:, None], f[:, None], torch.ones(3, 1, dtype=torch.float64),
        surrogate="ratio", epsilon=0.2, aggregation="sequence_mean", total=1.0,
    )  # fmt: skip
    torch.testing.assert_close(whole, per_arm(P, Q).sum())


def test_error_and_target() -> None:
    rewards, values = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.2, 0.4]])
    error, target = gae(rewards, values, torch.ones(1, 2), gamma=0.5, lam=0.0)
    torch.testing.assert_close(target, torch.tensor([[0.5 + 0.5 * 0.4, 1.0]]))
    torch.testing.assert_close(error, target - values)
