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
    exact = float((P * (P / Q).log()).sum())
    assert float((P * kl_estimate(P.log(), Q.log(), estimator="k3")).sum()) == pytest.approx(exact)
    without = Q / P - (Q / P).log()
    assert float((P * without).sum()) == pytest.approx(exact + 1)


def test_the_kl_is_averaged_like_the_surrogate() -> None:
    """Two responses, of 1 and of 4 tokens, each token k2 = 0.5 from the reference: the KL term is 0.5, not 2.5 / 2."""
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    loss, _ = kl_loss(mask * 0.0, mask * -1.0, mask, estimator="k2", aggregation="sequence_mean", total=2.0)
    assert float(loss) == pytest.approx(0.5)
    summed = (0.5 * mask).sum(1).mean()
    assert float(summed) == pytest.approx(1.25)


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
    wrong_last = float(rewards[0, 1] + values[0, 2] - values[0, 1])  # bootstrapping past the end
    assert wrong_last == 7.75


def test_the_lambda_sum_loses_weight_at_a_finite_horizon() -> None:
    lam, rewards, values = 0.9, torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)
    right = float(gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=lam)[0][0, 0])
    assert right == pytest.approx(lam**2)  # the δ recursion: Σ (γλ)^k δ_(t+k)
    n_step = [float(rewards[0, :n].sum()) for n in (1, 2, 3)]  # A^(n), all values being 0
    weights = [(1 - lam) * lam**n for n in range(3)]
    assert sum(weights) == pytest.approx(1 - lam**3)  # not 1
    wrong = sum(w * a for w, a in zip(weights, n_step, strict=True))
    assert wrong == pytest.approx((1 - lam) * lam**2)  # a tenth of what it should be
    whole = wrong + lam**3 * n_step[-1]  # the lost weight belongs to the last term
    assert whole == pytest.approx(right)


def test_the_weight_is_target_over_sampler() -> None:
    f = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    wanted = (P * f).sum()
    torch.testing.assert_close((Q * f * P / Q).sum(), wanted)
    assert abs(float((Q * f * Q / P).sum() - wanted)) > 1
    # policy_loss weighs samples of the old policy q to speak of p: its mean under q is −E_p[f]
    loss, _ = policy_loss(
        P.log()[:, None], Q.log()[:, None], f[:, None], torch.ones(3, 1, dtype=torch.float64),
        surrogate="ratio", epsilon=0.2, aggregation="sequence_mean", total=1.0,
    )  # fmt: skip
    per_arm = [
        policy_loss(
            P.log()[i].view(1, 1), Q.log()[i].view(1, 1), f[i].view(1, 1), torch.ones(1, 1, dtype=torch.float64),
            surrogate="ratio", epsilon=0.2, aggregation="sequence_mean", total=1.0,
        )[0]
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close((Q * torch.stack(per_arm)).sum(), -wanted)
    torch.testing.assert_close(loss, torch.stack(per_arm).sum())


def test_error_and_target() -> None:
    rewards, values = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.2, 0.4]])
    error, target = gae(rewards, values, torch.ones(1, 2), gamma=0.5, lam=0.0)
    torch.testing.assert_close(target, torch.tensor([[0.5 + 0.5 * 0.4, 1.0]]))
    torch.testing.assert_close(error, target - values)
