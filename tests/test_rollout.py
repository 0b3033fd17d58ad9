"""Sampling and the forward passes, on a tiny random Qwen2."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification

from rlhf_cli.rl.forward import response_logprobs, response_values, token_logprobs
from rlhf_cli.rl.randomness import permutation, uniforms
from rlhf_cli.rl.rollout import Prompts, Rollout
from rlhf_cli.rl.sampling import draw, sample

CONFIG = Qwen2Config(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    tie_word_embeddings=True,
    initializer_range=0.3,
)
EOS = (0, 1)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(CONFIG).eval()
    made.generation_config.top_k, made.generation_config.repetition_penalty = 1, 9.0  # must not leak
    return made


def prompts(lengths: list[int], width: int) -> Prompts:
    rows = [[2] * (width - n) + [(7 * i + 3 * j) % 38 + 2 for j in range(n)] for i, n in enumerate(lengths)]
    count = len(lengths)
    return Prompts(torch.tensor(rows), torch.tensor(lengths), torch.arange(count), torch.arange(count))


def roll(model: Qwen2ForCausalLM, given: Prompts, **options: int) -> Rollout:
    arguments = {"max_length": 16, "seed": 3, "step": 5} | options
    return sample(model, given, eos_ids=EOS, pad_id=0, temperature=0.9, **arguments)


def test_uniforms_are_uniform_and_depend_on_every_argument() -> None:
    index = torch.arange(20000)
    u = uniforms(1, 2, index, 3)
    assert 0 <= u.min() < u.max() < 1
    counts = torch.histc(u.float(), 50, 0, 1)
    assert ((counts - 400) ** 2 / 400).sum() < 90  # chi-square, 49 degrees of freedom: 85 is p = 0.001
    for other in (uniforms(2, 2, index, 3), uniforms(1, 3, index, 3), uniforms(1, 2, index, 4)):
        assert abs(float(torch.corrcoef(torch.stack([u, other]))[0, 1])) < 0.03
    assert permutation(0, 1, 2, 100).sort().values.tolist() == list(range(100))


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -3.0])
    count = 50000
    tokens, logprobs = draw(logits.expand(count, 5), uniforms(0, 0, torch.arange(count), 0))
    expected = logits.softmax(0) * count
    observed = torch.bincount(tokens, minlength=5)
    assert ((observed - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom, p = 0.001
    torch.testing.assert_close(logprobs, logits.log_softmax(0)[tokens])


def test_sampled_logprobs_are_those_of_the_training_forward(model: Qwen2ForCausalLM) -> None:
    rollout = roll(model, prompts([3, 7, 5, 1], 7))
    logprobs, entropies = response_logprobs(model, rollout, temperature=0.9)
    torch.testing.assert_close(logprobs * rollout.mask, rollout.logprobs, atol=1e-5, rtol=0)
    assert (entropies[rollout.mask] > 0).all()


def test_samples_do_not_depend_on_padding_or_batch(model: Qwen2ForCausalLM) -> None:
    whole = roll(model, prompts([3, 7, 5, 1], 7))
    wide = roll(model, prompts([3, 7, 5, 1], 12))
    assert torch.equal(whole.responses, wide.responses)
    given = prompts([3, 7, 5, 1], 7)
    for i in range(4):
        alone = roll(model, given.select(slice(i, i + 1)))
        assert torch.equal(alone.responses[0], whole.responses[i])


def test_responses_end_at_any_eos_which_is_part_of_them(model: Qwen2ForCausalLM) -> None:
    rollout = roll(model, prompts([4] * 64, 4), max_length=40)
    assert rollout.ended.any()
    last = rollout.responses[torch.arange(64), rollout.lengths - 1]
    assert (torch.isin(last, torch.tensor(EOS)) == rollout.ended).all()
    inside = rollout.responses[:, :-1].masked_fill(~rollout.mask[:, 1:], 39)
    assert not torch.isin(inside, torch.tensor(EOS)).any()
    assert rollout.mask.sum(1).tolist() == rollout.lengths.tolist()


def test_padding_changes_neither_logprobs_nor_values(model: Qwen2ForCausalLM) -> None:
    critic = Qwen2ForTokenClassification(Qwen2Config(**(CONFIG.to_dict() | {"num_labels": 1}))).eval()
    rollout = roll(model, prompts([3, 7, 5, 1], 7))
    noisy = replace(
        rollout,
        prompts=torch.cat([torch.full((4, 3), 9), rollout.prompts], 1),
        responses=torch.cat([rollout.responses.masked_fill(~rollout.mask, 17), torch.full((4, 2), 5)], 1),
        logprobs=torch.cat([rollout.logprobs, torch.zeros(4, 2)], 1),
    )
    width = rollout.responses.shape[1]
    for compute in (lambda r: response_logprobs(model, r, temperature=1.0)[0], lambda r: response_values(critic, r)):
        torch.testing.assert_close(compute(noisy)[:, :width], compute(rollout), atol=1e-5, rtol=1e-5)


def test_chunked_logprobs_equal_whole_ones_with_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64)
    labels = torch.arange(50) % 30
    whole = token_logprobs(states, weight, labels, temperature=0.7)
    (expected,) = torch.autograd.grad(whole[0].sum() + whole[1].sum(), states)
    monkeypatch.setattr("rlhf_cli.rl.forward.CHUNK_ELEMENTS", 30 * 7)
    pieces = token_logprobs(states, weight, labels, temperature=0.7)
    (got,) = torch.autograd.grad(pieces[0].sum() + pieces[1].sum(), states)
    torch.testing.assert_close(pieces[0], whole[0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
