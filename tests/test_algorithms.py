"""Every algorithm: its YAML composes, it solves a bandit, its first ratio is 1, it trains end to end."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.bandit import CPU, Bandit, config, tiny
from helpers.runs import SMALL
from helpers.unaligned import unaligned
from omegaconf import OmegaConf

from rlhf_cli.build.algo import algorithm
from rlhf_cli.cli import dispatch
from rlhf_cli.commands.doctor import Numbers
from rlhf_cli.config.algo_schema import READ_WITH, Algo
from rlhf_cli.config.compose import CONF, plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.engine import gate, plain
from rlhf_cli.engine import read as forward
from rlhf_cli.engine.sample import sample
from rlhf_cli.miniatures.build import miniature
from rlhf_cli.rl.controllers import DoublingKL, FixedKL
from rlhf_cli.rl.divergences import full_kl
from rlhf_cli.rl.rollout import Experience, Prompts, Rollout, concatenate
from rlhf_cli.rl.trust_region import conjugate_gradient, flat, hessian_product
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.training import micro_batches
from rlhf_cli.training import natural_gradient as trust_region
from rlhf_cli.training.policy import Generation, Policy

ALGORITHMS = sorted(file.stem for file in (CONF / "algo").glob("*.yaml"))
UNUSED = {"allow_unused": True, "materialize_grads": True}


def play(model, step: int, count: int, group_size: int) -> Rollout:
    """One-token responses to one prompt."""
    prompts = Prompts(
        torch.full((count, 2), 3), torch.full((count,), 2), torch.arange(count), torch.arange(count) // group_size
    )
    everything = tuple(range(12))  # every token ends the response
    return sample(model, prompts, eos_ids=everything, pad_id=0, max_length=1, temperature=1.0, seed=0, step=step)


def speak(model, count: int) -> Rollout:
    """Responses of one to five tokens to prompts of two to four."""
    ids = torch.randint(3, 12, (count, 4), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(count)
    prompts = Prompts(ids, rows % 3 + 2, rows, rows)
    return sample(model, prompts, eos_ids=(0, 1, 2), pad_id=0, max_length=5, temperature=1.0, seed=0, step=1)


def written_down(lengths: list[int], advantages: list[list[float]] | None = None) -> Experience:
    """Experience of responses of these lengths, without a model."""
    count, longest = len(lengths), max(lengths)
    zero = torch.zeros(count, longest)
    rows, ids = torch.arange(count), torch.ones(count, longest, dtype=torch.long)
    sizes = torch.tensor(lengths)
    rollout = Rollout(ids[:, :1], rows * 0 + 1, ids, sizes, rows >= 0, zero, rows // 2)
    given = zero if advantages is None else torch.tensor(advantages)
    return Experience(rollout, (zero - 1) * rollout.mask, zero, zero, given, zero)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_solves_the_bandit(algo: str) -> None:
    bandit = Bandit(f"algo={algo}")
    before = bandit.chance()
    assert before < 0.2
    for number in range(1, 41):
        bandit.step(number)
        if bandit.chance() > 0.95:
            return
    raise AssertionError(f"{algo}: {before:.2f} -> {bandit.chance():.2f} after 40 steps")


@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=reinforce", "algo.baseline=none"],
        ["algo=reinforce", "algo.reward_to_go=false"],
        ["algo=reinforce", "algo.baseline=critic", "critic=qwen_base"],
        ["algo=ppo", "critic=shared"],
        ["algo=ppo", "algo.surrogate=ratio"],
        ["algo=ppo", "algo.value_target=td0"],
        ["algo=ppo_classic", "algo.aggregation=sequence_total"],
        ["algo=ppo_kl", "algo.beta_old_direction=policy_old"],
        ["algo=ppo", "algo.dual_clip=3"],
        ["algo=ppo", "algo.surrogate=cispo"],
        ["algo=rloo", "algo.ratio_level=sequence"],
    ],
)
def test_variants_solve_it_too(overrides: list[str]) -> None:
    bandit = Bandit(*overrides)
    for number in range(1, 51):
        bandit.step(number)
    assert bandit.chance() > 0.9


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [  # of the tokens of two responses, one and three tokens long, at most eight
        (["algo=ppo"], [1 / 2, 1 / 6]),
        (["algo=ppo_classic"], [1 / 4, 1 / 4]),
        (["algo=ppo_classic", "algo.aggregation=sequence_total"], [1 / 2, 1 / 2]),
        (["algo=grpo"], [1 / 2, 1 / 6]),
        (["algo=dr_grpo"], [1 / 16, 1 / 16]),
        (["algo=dapo"], [1 / 4, 1 / 4]),
        (["algo=reinforce"], [1 / 4, 1 / 4]),
        (["algo=rloo"], [1 / 2, 1 / 6]),
        (["algo=ppo_kl"], [1 / 2, 1 / 6]),
        (["algo=cispo"], [1 / 4, 1 / 4]),
        (["algo=reinforce_pp"], [1 / 4, 1 / 4]),
    ],
)
def test_what_a_token_weighs(overrides: list[str], weights: list[float]) -> None:
    """−∂loss/∂log π of each token at ratio 1 is its advantage times its weight in the aggregation."""
    composed = algorithm(config(*overrides, "rollout.max_response_length=8", "algo.beta=0"))
    composed.beta_old.value = 0.5
    experience = written_down([1, 3], advantages=[[2.0, 0, 0], [-1.0, 3.0, 0.5]])
    logprobs = experience.old_logprobs.clone().requires_grad_()
    total = composed.total(experience)
    loss, _ = composed.actor_loss(experience, logprobs, logprobs * 0, total=total)
    loss.backward()
    expected = experience.advantages * torch.tensor(weights)[:, None]
    torch.testing.assert_close(-logprobs.grad, expected)


def test_ppo_full_is_its_combined_objective() -> None:
    """L_clip + w1 H − w2 KL(π_orig ‖ π) − w3 ½ (V − score)², each the mean over a sequence, then over sequences."""
    settings = config("algo=ppo_full", "algo.entropy=0.3", "algo.beta=0.7")
    composed = algorithm(settings)
    torch.manual_seed(0)
    experience = composed.estimate(written_down([1, 3]), torch.tensor([0.2, 0.9]))
    assert torch.equal(experience.returns, torch.tensor([[0.2, 0, 0], [0.9, 0.9, 0.9]]))
    mask, ratio = experience.rollout.mask, torch.tensor([[1.5, 1, 1], [0.5, 1.1, 0.9]])
    entropies, kl, values = torch.rand(2, 3) * mask, torch.rand(2, 3) * mask, torch.rand(2, 3) * mask
    advantages = experience.advantages
    clipped = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    error = (values - experience.returns).square() / 2

    def mean(per_token: torch.Tensor) -> torch.Tensor:
        return ((per_token * mask).sum(1) / mask.sum(1)).mean()

    logprobs = experience.old_logprobs + ratio.log()
    more = {"total": composed.total(experience)}
    loss, _ = composed.actor_loss(experience, logprobs, entropies, full_kl=kl, **more)
    torch.testing.assert_close(-loss, mean(clipped) + 0.3 * mean(entropies) - 0.7 * mean(kl))
    value_loss, _ = composed.critic_loss(experience, values, total=more["total"])
    torch.testing.assert_close(value_loss, mean(error))


def test_a_baseline_of_none_is_none() -> None:
    """Whitening would take the mean away behind its back."""
    rollout = play(tiny(), 1, 8, 1)
    zero, scores = torch.zeros_like(rollout.logprobs), torch.arange(8.0)
    experience = Experience(rollout, zero, zero, zero, zero, zero)
    for baseline, mean in (("none", 0.0), ("batch_mean", 3.5)):
        composed = algorithm(config("algo=reinforce", f"algo.baseline={baseline}"))
        estimated = replace(composed, beta=FixedKL(0.0)).estimate(experience, scores)
        assert torch.equal(estimated.advantages[:, 0], scores - mean)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_first_ratio_is_exactly_1(algo: str) -> None:
    bandit = Bandit(f"algo={algo}", "algo.epochs=1", "algo.minibatches=1")
    metrics = bandit.step(1)
    assert metrics["train/ratio_max"] == 1
    assert metrics["train/approx_kl"] == 0


def test_the_cut_is_counted_where_it_is_asked_for() -> None:
    """clipfrac_dual, value_clipfrac and kl_loss stand in the metrics of the runs that have them, and in no other."""
    names = {"train/clipfrac_dual", "train/value_clipfrac", "train/kl_loss"}
    assert names & Bandit("algo=reinforce").step(1).keys() == set()
    assert names & Bandit("algo=ppo", "algo.dual_clip=3").step(1).keys() == {
        "train/clipfrac_dual",
        "train/value_clipfrac",
    }
    bandit = Bandit("algo=grpo", beta=0.1)
    assert names & bandit.step(1).keys() == {"train/kl_loss"}
    metrics = bandit.step(2)
    assert 0 < metrics["train/kl_loss"] < 1
    cut = Bandit("algo=ppo", "algo.value_clip=1e-6", "algo.epochs=4")
    assert 0 < cut.step(1)["train/value_clipfrac"] <= 1


def test_gspo_gives_a_response_one_ratio() -> None:
    """−∂loss/∂log π of a token is s A / (rows · |o|), or 0 where s is cut; s the geometric mean of the token ratios."""
    composed = algorithm(config("algo=gspo"))
    assert (composed.epsilon, composed.epsilon_high, composed.kl) == (3e-4, 4e-4, "none")
    experience = written_down([1, 3], advantages=[[2.0, 0, 0], [-1.0, -1.0, -1.0]])
    gaps = torch.tensor([[5e-4, 0, 0], [0.3, 0.3, -0.6 + 6e-4]])  # means 5e-4, over the clip, and 2e-4, within it
    logprobs = (experience.old_logprobs + gaps).requires_grad_()
    loss, metrics = composed.actor_loss(experience, logprobs, logprobs * 0, total=composed.total(experience))
    loss.backward()
    expected = torch.tensor([[0.0, 0, 0], [-1.0, -1, -1]]) * math.exp(2e-4) / 6
    torch.testing.assert_close(-logprobs.grad, expected, rtol=1e-5, atol=1e-8)
    assert float(metrics["clipfrac"]) == 1
    assert float(metrics["approx_kl"]) == pytest.approx(sum(math.expm1(g) - g for g in (5e-4, 0.3, 0.3, -0.5994)), 1e-3)


def test_cispo_cuts_the_weight_and_keeps_the_gradient() -> None:
    composed = algorithm(config("algo=cispo", "algo.epsilon_high=0.5"))
    experience = written_down([1, 3], advantages=[[2.0, 0, 0], [-1.0, -1.0, -1.0]])
    ratio = torch.tensor([[3.0, 1, 1], [0.1, 1.2, 3.0]])
    logprobs = (experience.old_logprobs + ratio.log()).requires_grad_()
    loss, metrics = composed.actor_loss(experience, logprobs, logprobs * 0, total=composed.total(experience))
    loss.backward()
    torch.testing.assert_close(-logprobs.grad, torch.tensor([[1.5 * 2, 0, 0], [-0.1, -1.2, -1.5]]) / 4)
    torch.testing.assert_close(loss, (-torch.tensor([[1.5 * 2, 0, 0], [-0.1, -1.2, -1.5]]) * logprobs / 4).sum())
    assert float(metrics["clipfrac"]) == 2


def test_reinforce_pp_normalises_the_sum_of_what_follows_over_the_batch() -> None:
    """Rewards of responses of 1 and 3 tokens: the score at the end, −β log π/π_ref on every token. β = ½, kl = −1."""
    composed = algorithm(config("algo=reinforce_pp", "algo.beta=0.5"))
    assert not config("algo=reinforce_pp").algo.needs_critic
    estimated = composed.estimate(written_down([1, 3]), torch.tensor([1.0, 0.0]))
    # old − ref = −1 on each token, so each gets +½: returns 1.5 | 1.5, 1, 0.5, of mean 1.125 and variance 0.6875 / 3
    expected = (torch.tensor([[1.5, 1.125, 1.125], [1.5, 1.0, 0.5]]) - 1.125) / math.sqrt(0.6875 / 3)
    torch.testing.assert_close(estimated.advantages, expected)


def test_the_corrected_kl_has_the_gradient_of_the_kl_off_policy_too() -> None:
    """−∂loss/∂log π of a token: with A = 0, of k3 it is ρ · log π/π_ref instead of 1 − π_ref/π."""
    experience = written_down([1, 1], advantages=[[0.0], [0.0]])
    logprobs = (experience.old_logprobs + torch.tensor([[0.7], [-0.2]])).requires_grad_()
    ratio, gap = torch.tensor([[0.7], [-0.2]]).exp(), logprobs.detach()  # the reference's log-probs are 0
    for correction, slope in (("false", 1 - (-gap).exp()), ("true", ratio * gap)):
        composed = algorithm(config("algo=grpo", f"algo.kl_correction={correction}", "algo.beta=0.5"))
        loss, _ = composed.actor_loss(experience, logprobs, logprobs * 0, total=2.0)
        torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], 0.5 * slope / 2)


def test_a_kl_penalty_in_the_loss_holds_the_policy_back() -> None:
    free, held = Bandit("algo=ppo_full"), Bandit("algo=ppo_full", beta=2.0)
    for number in range(1, 16):
        free.step(number)
        held.step(number)
    assert held.chance() < 0.6 * free.chance()


# --- the trust region


def test_hessian_products_are_the_hessians() -> None:
    weights = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.7, 0.1], dtype=torch.float64))
    matrix = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(w: torch.Tensor) -> torch.Tensor:
        return (matrix @ w).sin().square().sum()

    explicit = torch.autograd.functional.hessian(value, weights.detach())
    for vector in torch.eye(4, dtype=torch.float64):
        torch.testing.assert_close(hessian_product(value(weights), [weights], vector), explicit @ vector)


@pytest.mark.parametrize("chunk_elements", [10**6, 24])
def test_the_fisher_product_is_the_explicit_fisher_matrix(monkeypatch: pytest.MonkeyPatch, chunk_elements: int) -> None:
    """F = 1/n Σ Jᵀ (diag π − π πᵀ) J over response tokens, J the Jacobian of a token's logits: no KL in it.

    In one piece, and in pieces of two tokens that are recomputed in the backward pass: what a full vocabulary needs.
    """
    model, before = tiny(), tiny().requires_grad_(False)
    rollout = speak(model, 6)
    parameters = list(model.parameters())
    logits = plain.response_outputs(model, rollout, gate.facts_of(model))
    expected = torch.zeros(len(flat(parameters)), len(flat(parameters)))
    for row in logits:
        jacobian = torch.stack([flat(torch.autograd.grad(x, parameters, retain_graph=True, **UNUSED)) for x in row])
        chances = row.detach().softmax(-1)
        expected += jacobian.T @ (chances.diag() - chances.outer(chances)) @ jacobian / len(logits)
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", chunk_elements)
    zero = torch.zeros_like(rollout.logprobs)
    experience = Experience(rollout, zero, zero, zero, zero, zero)
    generation = Generation((0, 1, 2), 0, max_length=5)
    policy = Policy(model, Numbers(), None, generation, CPU, micro_batch_size=4)  # micro-batches of 4 and 2
    for vector in torch.randn(3, len(expected), generator=torch.Generator().manual_seed(4)):
        got = trust_region.fisher_product(policy, experience, before, vector)
        torch.testing.assert_close(got, expected @ vector, rtol=1e-3, atol=1e-5)


def test_conjugate_gradient_solves() -> None:
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix, b = root @ root.T + torch.eye(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    x = conjugate_gradient(lambda v: matrix @ v, b, steps=6)
    torch.testing.assert_close(matrix @ x, b, rtol=1e-6, atol=1e-6)


def test_trpo_stays_inside_its_region() -> None:
    bandit = Bandit("algo=trpo")
    for number in range(1, 6):
        old = tiny()
        old.load_state_dict(bandit.actor.state_dict())
        metrics = bandit.step(number)
        rollout = play(old, number, 64, 1)
        with torch.no_grad():
            reading = forward.read(bandit.actor, rollout, temperature=1.0, reference=old, direction="ref_policy")
        assert float(reading.full_kl.mean()) == pytest.approx(metrics["train/trust_region_kl"], abs=1e-6)
        assert 0 < metrics["train/trust_region_kl"] <= 0.05
        assert metrics["train/trust_region_share"] > 0


def test_trpo_takes_back_a_step_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    bandit = Bandit("algo=trpo")
    before = [p.clone() for p in bandit.actor.parameters()]
    step = trust_region.natural_step
    monkeypatch.setattr(trust_region, "natural_step", lambda *given, **options: step(*given, **options) * torch.inf)
    assert bandit.step(1)["train/trust_region_share"] == 0
    assert all(torch.equal(p, old) for p, old in zip(bandit.actor.parameters(), before, strict=True))


def test_a_process_without_a_row_of_the_minibatch_has_no_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = play(tiny(), 1, 4, 1)
    zero = torch.zeros_like(rollout.logprobs)
    monkeypatch.setattr(micro_batches.distributed, "share", lambda count: slice(0, 0))
    assert list(micro_batches.micro_batches(Experience(rollout, zero, zero, zero, zero, zero), 4, lockstep=False)) == []


# --- pieces


def test_the_chunked_full_kl_is_the_full_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    states, weight = torch.randn(9, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    theirs, their_weight = torch.randn(9, 8), torch.randn(20, 8)
    for direction in ("policy_ref", "ref_policy"):
        expected = full_kl(states @ weight.T / 0.7, theirs @ their_weight.T / 0.7, direction=direction)
        wanted = torch.autograd.grad(expected.sum(), (states, weight))
        for elements in (10**6, 60):  # in one piece, in pieces of three tokens
            monkeypatch.setattr(forward, "CHUNK_ELEMENTS", elements)
            got = forward.token_full_kl(states, weight, theirs, their_weight, temperature=0.7, direction=direction)
            torch.testing.assert_close(got, expected)
            for one, other in zip(torch.autograd.grad(got.sum(), (states, weight)), wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_beta_old_doubles_and_halves() -> None:
    beta = DoublingKL(1.0, target=0.01)
    beta.update(0.02, 64)
    assert beta.value == 2
    beta.update(0.01, 64)
    assert beta.value == 2
    beta.update(0.001, 64)
    assert beta.value == 1


def test_concatenated_rollouts_keep_their_rows() -> None:
    model = tiny()
    one, two = play(model, 1, 4, 1), play(model, 2, 3, 1)
    both = concatenate([one, two], pad_id=0)
    assert len(both) == 7
    assert torch.equal(both.responses[:4], one.responses)
    assert torch.equal(both.attention.sum(1), torch.full((7,), 3))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.filter=refill"], "algo.filter=none"),
        (["algo.surrogate=kl_penalty"], "try algo.beta_old"),
        (["algo.surrogate=policy_gradient"], "algo.epochs=1"),
        (["algo=trpo", "algo.ptx=0.1"], "algo.ptx=0"),
        (["algo=trpo", "critic=shared"], "another critic"),
        (["algo=dapo", "algo.overlong_buffer=99"], "longer than"),
        (["algo=reinforce", "algo.baseline=critic"], "needs a critic"),
        (["critic=none"], "use algo=grpo"),
        (["algo=grpo", "algo.group_size=1"], "try algo.group_size=8"),
        (["algo.beta_target=2", "algo.beta=0"], "algo.beta=0.03"),
        (["algo.beta_old_target=0.01"], "algo.surrogate=kl_penalty"),
        (["algo.retrain_epochs=1"], "algo=grpo_iterative"),
        (["algo.delta=0.02"], "algo.delta=0.02 is read only with algo.update=trust_region: set that too, or drop"),
        (["algo=dapo", "algo.beta=0.1"], "algo.kl=reward or loss"),
        (["algo=grpo", "algo.lambda=0.9"], "algo.advantage=gae"),
        (["algo=grpo", "algo.value=0.5"], "algo.advantage=gae"),
        (["algo=a2c", "algo.epsilon=0.1"], "algo.surrogate=clip or cispo"),
        (["algo=cispo", "algo.dual_clip=3"], "algo.surrogate=clip"),
        (["algo=ppo_kl", "algo.ratio_level=sequence"], "algo.surrogate=clip or ratio"),
        (["algo.kl_correction=true"], "algo.kl_correction=true is read only with algo.kl=loss"),
        (["algo=grpo", "algo.kl_correction=true", "algo.kl_estimator=k2"], "algo.kl_estimator=k3 or k1"),
        (["algo=grpo", "algo.kl_direction=ref_policy"], "algo.kl_estimator=full"),
        (["algo.beta_horizon=100"], "algo.beta_target=6"),
        (["algo=grpo", "algo.retrain_lr=1e-4"], "algo=grpo_iterative"),
        (["algo.dual_clip=0.5"], "greater than 1"),
    ],
)
def test_contradictions_name_the_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=grpo", "algo.epsilon_high=0.3"],  # read, though its YAML does not name it
        ["algo=grpo", "algo.kl=none"],  # beta and k3 come with the option: nobody typed them
        ["algo=ppo_kl", "algo.surrogate=clip"],
        ["algo=dapo", "algo.beta=0"],  # off, as it is
        ["algo=grpo", "algo.lambda=0.95"],  # the default
        ["algo=grpo", "algo.advantage=gae", "critic=qwen_base", "algo.lambda=0.9"],
        ["algo=trpo", "algo.delta=0.02"],
        ["algo=ppo", "algo.dual_clip=3"],
        ["algo=grpo", "algo.kl_correction=true"],
    ],
)
def test_any_choice_crosses_any_algorithm(overrides: list[str]) -> None:
    config(*overrides)


def test_the_defaults_of_the_schema_are_the_options() -> None:
    """What an algorithm's YAML leaves out means what conf/algo/ppo.yaml says, or off."""
    listed = OmegaConf.to_container(OmegaConf.load(CONF / "algo" / "ppo.yaml"), resolve=False)
    fields = {field.alias or name: field for name, field in Algo.model_fields.items()}
    assert listed.keys() == fields.keys()
    defaults = {name: field.default for name, field in fields.items() if not field.is_required()}
    assert READ_WITH.keys() <= defaults.keys()
    assert {name for name, value in defaults.items() if listed[name] != value} == {"beta"}
    assert defaults["beta"] == 0


@pytest.mark.parametrize(("key", "instead"), [("mu", "algo.epochs"), ("iterations", "steps")])
def test_the_papers_other_words_name_the_key(key: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", "scale=mini", "algo=grpo_iterative", f"algo.{key}=2"]) == 2
    assert f"algo.{key}: there is no such key. Did you mean {instead}?" in capsys.readouterr().err


def test_a_key_of_another_option_is_told_from_a_typo(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["train", "scale=mini", "reward=vader", "reward.path=x"]) == 2
    assert "reward.path: the option that is chosen does not read it" in capsys.readouterr().err


def test_iterative_grpo_needs_a_reward_model_that_learns() -> None:
    with pytest.raises(UserError, match="reward=learned"):
        plan("train", ["scale=mini", "algo=grpo_iterative"], multirun=False, config_dir=None)


# --- end to end


def run(folder: Path, *overrides: str) -> int:
    return dispatch(["train", *SMALL, f"hydra.run.dir={folder}", *overrides])


@pytest.mark.parametrize("algo", [a for a in ALGORITHMS if a not in ("ppo", "grpo")])
def test_trains_and_resumes(cache, tmp_path: Path, algo: str) -> None:
    actor = unaligned(miniature("qwen_instruct", source="generated", cache_dir=cache), tmp_path / "actor")
    options = [f"algo={algo}", "rollout.batch_size=16", f"actor.path={actor}"]
    if algo == "trpo":
        options += ["algo.cg_steps=2", "algo.line_search_steps=2", "optim.micro_batch_size=16"]
    if algo == "grpo_iterative":
        options += ["algo.steps_per_iteration=1", "algo.retrain_epochs=0"]
    assert run(tmp_path / "whole", *options) == 0
    assert run(tmp_path / "cut", *options, "steps=2") == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=3"]) == 0
    whole, cut = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    timings = ("time/", "throughput/", "memory/")
    assert {k: v for k, v in whole[3].items() if not k.startswith(timings)} == {
        k: cut[3][k] for k in whole[3] if not k.startswith(timings)
    }
    if algo == "ppo_ptx":
        assert whole[0]["val/ptx_perplexity"] > 1
    if algo == "grpo_iterative":
        assert abs(whole[2]["train/kl"]) < 1e-4  # the reference is the policy again


REFILLS = """
import zlib

def some_flat(prompts, responses):
    return [zlib.crc32(r.encode()) % 7 * float(zlib.crc32(p.encode()) % 2) for p, r in zip(prompts, responses)]

def all_flat(prompts, responses):
    return [0.5] * len(responses)
"""


def test_dapo_draws_groups_of_equal_rewards_again(cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refill_reward.py").write_text(REFILLS)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["algo=dapo", "algo.overlong_buffer=0", "algo.group_size=2", "reward=python", "steps=2"]
    some = [*options, "reward.fn=refill_reward:some_flat"]
    assert run(tmp_path / "once", *some, "algo.filter=none") == 0
    assert run(tmp_path / "refilled", *some, "algo.refill_tries=9") == 0
    assert run(tmp_path / "bounded", *options, "reward.fn=refill_reward:all_flat", "algo.refill_tries=2") == 0
    once, refilled, bounded = (
        read_jsonl(tmp_path / name / "metrics.jsonl")[1:] for name in ("once", "refilled", "bounded")
    )
    assert any(row["train/zero_variance_groups"] > 0 for row in once)
    assert all(row["train/zero_variance_groups"] == 0 for row in refilled)
    assert any(row["train/groups_drawn"] > 4 for row in refilled)
    for row in bounded:  # nothing to be found: the batch is filled up and teaches nothing
        assert row["train/groups_drawn"] == 12
        assert row["train/zero_variance_groups"] == 1
        assert row["train/grad_norm"] == 0


def test_the_pretraining_mix_keeps_perplexity_down(cache, tmp_path: Path) -> None:
    measured = {}
    for weight in ("0", "1"):
        assert run(tmp_path / weight, "algo=ppo_ptx", f"algo.ptx={weight}", "optim.warmup_steps=0") == 0
        measured[weight] = read_jsonl(tmp_path / weight / "metrics.jsonl")
    without, mixed = measured["0"], measured["1"]
    assert without[0]["val/ptx_perplexity"] == mixed[0]["val/ptx_perplexity"]
    assert without[-1]["val/ptx_perplexity"] > mixed[-1]["val/ptx_perplexity"]
    assert "train/ptx_loss" in mixed[1]
    assert "train/ptx_loss" not in without[1]


def test_shared_critic_trains_and_resumes(cache, tmp_path: Path) -> None:
    assert run(tmp_path / "whole", "critic=shared") == 0
    assert run(tmp_path / "cut", "critic=shared", "steps=2") == 0
    assert dispatch(["train", f"resume={tmp_path / 'cut'}", "steps=3"]) == 0
    whole, cut = (read_jsonl(tmp_path / name / "metrics.jsonl")[3] for name in ("whole", "cut"))
    assert {k: cut[k] for k in whole if k[:5] in ("train", "val/s")} == {
        k: v for k, v in whole.items() if k[:5] in ("train", "val/s")
    }


def test_log_probs_kept_from_sampling_are_nearly_the_recomputed(cache, tmp_path: Path) -> None:
    assert run(tmp_path, "algo.old_logprobs=rollout", "optim.actor_lr=0") == 0
    for row in read_jsonl(tmp_path / "metrics.jsonl")[1:]:
        assert 0 < row["train/logprob_mismatch"] < 1e-5
        assert row["train/ratio_max"] == pytest.approx(1, abs=1e-5)


def test_full_kl_in_the_reward(cache, tmp_path: Path) -> None:
    assert run(tmp_path, "algo.kl_estimator=full") == 0
