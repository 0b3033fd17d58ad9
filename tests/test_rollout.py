"""Sampling and the forward passes, on a tiny random Qwen2."""

import copy
import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.qwen import EOS, born, prompts, roll
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from rlhf_cli.engine import cuda_graph_decode, gate, scratch
from rlhf_cli.engine import lm_head as head
from rlhf_cli.engine import sample as sampling
from rlhf_cli.engine.forward import differentiable_twice
from rlhf_cli.engine.gradients import adds, in_place
from rlhf_cli.engine.kv_cache import KVCache
from rlhf_cli.engine.lm_head import token_logprobs
from rlhf_cli.engine.packing import pack
from rlhf_cli.engine.read import response_logprobs, response_values
from rlhf_cli.engine.sample import draw
from rlhf_cli.rl.randomness import permutation, uniforms
from rlhf_cli.rl.rollout import Prompts, Rollout

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


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    made = born(CONFIG)
    gate.take_way(made, gate.PLAIN)
    made.generation_config.top_k, made.generation_config.repetition_penalty = 1, 9.0  # must not leak
    return made


def test_uniforms_are_uniform_and_depend_on_every_argument() -> None:
    index = torch.arange(20000)
    u = uniforms(1, 2, index, 3)
    assert torch.equal(uniforms(1, 2, index[:, None], torch.arange(5))[:, 3], u)
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


@pytest.mark.parametrize(("chunk", "cached"), [(10**6, 10**6), (10**6, 30 * 7), (30 * 21, 30 * 7)])
def test_logprobs_and_entropies_of_the_head_with_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int, cached: int
) -> None:
    """In one piece, in pieces, and in chunks of pieces computed a second time in the backward pass."""
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", chunk)
    monkeypatch.setattr(head, "CACHED_ELEMENTS", cached)
    torch.manual_seed(1)
    states = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(50) % 30
    plain = (states @ weight.T / 0.7).log_softmax(-1)
    expected = plain.gather(1, labels[:, None]).squeeze(1), -(plain.exp() * plain).sum(1)
    got = token_logprobs(states, weight, labels, temperature=0.7)
    mixed = torch.randn(2, 50, dtype=torch.float64)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    for chosen in (mixed, mixed * torch.tensor([[1.0], [0.0]]), mixed * torch.tensor([[0.0], [1.0]])):
        wanted = torch.autograd.grad((torch.stack(expected) * chosen).sum(), (states, weight), retain_graph=True)
        had = torch.autograd.grad((torch.stack(got) * chosen).sum(), (states, weight), retain_graph=True)
        for one, other in zip(had, wanted, strict=True):
            torch.testing.assert_close(one, other)
    few, small = states.detach()[:3].requires_grad_(), weight.detach()[:6].requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: token_logprobs(s, w, labels[:3], temperature=1.3), (few, small))


@pytest.fixture(scope="module")
def packing_model(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """The same weights, by the fast way."""
    return by_the_fast_way(model)


def by_the_fast_way(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    made = copy.deepcopy(model)
    gate.take_way(made, None)
    assert gate.fast(made, 64)
    assert not gate.fast(model, 64)
    return made


def in_groups(given: Prompts, size: int) -> Prompts:
    repeated = given.select(torch.arange(len(given)).repeat_interleave(size))
    return replace(repeated, index=torch.arange(len(repeated)))


def norm_in_any_precision(self: Qwen2RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Qwen2RMSNorm.forward, which casts to float32 by itself."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def rounding(expected: torch.Tensor, terms: int) -> float:
    """How far two orders of the same sums may be apart: each of so many additions rounds by half an ε of what is summed
    up (Higham 2002, sec. 4.2), and that on both sides."""
    return terms * torch.finfo(expected.dtype).eps * float(expected.detach().abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_forward_is_the_padded_one_with_gradient(
    model: Qwen2ForCausalLM, packing_model: Qwen2ForCausalLM, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qwen2RMSNorm, "forward", norm_in_any_precision)
    rollout = roll(model, in_groups(prompts([3, 7, 5, 1], 9), 3))
    padded, packing = (copy.deepcopy(m).to(dtype) for m in (model, packing_model))
    shuffled = rollout.select(torch.randperm(12, generator=torch.Generator().manual_seed(0)))
    one_token = replace(rollout, lengths=torch.ones_like(rollout.lengths))
    widths = CONFIG.hidden_size + CONFIG.intermediate_size + CONFIG.vocab_size
    for case in (rollout, shuffled, shuffled.select(slice(0, 5)), one_token):
        plain, packed = (response_logprobs(m, case, temperature=0.9) for m in (padded, packing))
        for one, other in zip(packed, plain, strict=True):
            torch.testing.assert_close(one, other, atol=rounding(other, widths), rtol=0)
        weights = torch.randn(plain[0].shape, generator=torch.Generator().manual_seed(1))
        had, wanted = (
            torch.autograd.grad((values[0] * weights).sum(), list(m.parameters()))
            for m, values in ((packing, packed), (padded, plain))
        )
        tokens = int((case.prompt_lengths + case.lengths).sum())
        for one, other in zip(had, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=rounding(other, widths + tokens), rtol=0)


def test_the_fast_way_computes_what_transformers_does_with_gradient(
    model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where no wrong formula hides behind rounding; inside `differentiable_twice` too."""
    monkeypatch.setattr(Qwen2RMSNorm, "forward", norm_in_any_precision)
    plain = copy.deepcopy(model).double().requires_grad_(True)
    quick = by_the_fast_way(plain)
    rollout = roll(model, in_groups(prompts([3, 7, 5, 1], 9), 3))
    found = [response_logprobs(m, rollout, temperature=0.9)[0] for m in (plain, quick)]
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)
    weights = torch.randn(found[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, had = (
        torch.autograd.grad((x * weights).sum(), list(m.parameters()))
        for x, m in zip(found, (plain, quick), strict=True)
    )
    for one, other in zip(had, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)
    with torch.no_grad():
        unrecorded = response_logprobs(quick, rollout, temperature=0.9)[0]
    torch.testing.assert_close(unrecorded, found[0], atol=1e-12, rtol=0)
    with differentiable_twice():
        torch.testing.assert_close(response_logprobs(quick, rollout, temperature=0.9)[0], found[0], atol=1e-12, rtol=0)


def test_memory_first_used_in_inference_mode_serves_training(
    packing_model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_scratch", {})
    monkeypatch.setattr(scratch, "_returned", {})
    rollout = roll(packing_model, prompts([3, 5], 5))
    with torch.inference_mode():
        unrecorded = response_logprobs(packing_model, rollout, temperature=0.9)[0]
    logprobs = response_logprobs(packing_model, rollout, temperature=0.9)[0]
    torch.testing.assert_close(logprobs, unrecorded)
    logprobs.sum().backward()
    packing_model.zero_grad()


def test_scratch_memory_is_one_piece_whatever_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_scratch", {})
    like = torch.zeros(2, 3)
    small = scratch.scratch("a", like)
    assert scratch.scratch("a", like) is small
    assert scratch.scratch("a", like, (5,)).data_ptr() == small.data_ptr()
    large = scratch.scratch("a", like, (4, 3))
    assert scratch.scratch("a", like).data_ptr() == large.data_ptr()  # nobody is given what was replaced
    others = [scratch.scratch("b", like), scratch.scratch("a", like, dtype=torch.bfloat16)]
    assert not {x.data_ptr() for x in others} & {small.data_ptr(), large.data_ptr()}
    for rows in range(3 * scratch.VIEWS):
        assert scratch.scratch("a", like, (1, rows)).shape == (1, rows)
    assert len(scratch._scratch["a", torch.float32][1]) <= scratch.VIEWS


def test_keys_and_values_are_freed_with_the_last_token(
    packing_model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[weakref.ref[KVCache]] = []

    class Noted(KVCache):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            caches.append(weakref.ref(self))

    monkeypatch.setattr("rlhf_cli.engine.kv_cache.KVCache", Noted)
    gc.disable()  # what is in a circle would wait for it
    try:
        roll(packing_model, prompts([3, 7, 5], 9))
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()


def test_gradients_added_in_place_are_those_of_autograd(packing_model: Qwen2ForCausalLM) -> None:
    """Over two micro-batches, embedding and tied head together; what was there before is added to."""
    model = copy.deepcopy(packing_model).double().requires_grad_(True)
    rollout = roll(packing_model, in_groups(prompts([3, 7, 5, 1], 9), 3))
    micros = [rollout.select(slice(0, 5)).trimmed(), rollout.select(slice(5, 12)).trimmed()]

    def loss(micro: Rollout) -> torch.Tensor:
        logprobs, entropies = response_logprobs(model, micro, temperature=0.9)
        return (logprobs.sin() + 0.3 * entropies).sum()

    wanted = torch.autograd.grad(sum(map(loss, micros)), list(model.parameters()))
    with in_place():
        for micro in micros:
            loss(micro).backward()
    for had, want in zip((p.grad for p in model.parameters()), wanted, strict=True):
        torch.testing.assert_close(had, want, atol=1e-11, rtol=1e-9)
    assert not adds(model.lm_head.weight)


def test_pieces_hold_as_many_tokens_as_so_many_of_the_longest_rows(model: Qwen2ForCausalLM) -> None:
    rollout = roll(model, in_groups(prompts([3, 7, 5, 1], 9), 8))
    total = rollout.prompt_lengths + rollout.lengths
    order = total.argsort()
    sorted_, total = rollout.select(order), total[order]
    pieces = sorted_.pieces(4)
    assert [i for piece in pieces for i in range(32)[piece]] == list(range(32))

    def positions(rows: slice) -> int:
        return int(sorted_.prompt_lengths[rows].max() + sorted_.lengths[rows].max())

    assert all(len(total[piece]) * positions(piece) <= 4 * positions(slice(0, 32)) for piece in pieces)
    assert len(total[pieces[0]]) > 4
    assert len(pieces) <= 8


def test_a_groups_prompt_is_packed_once(model: Qwen2ForCausalLM) -> None:
    rollout = roll(model, in_groups(prompts([3, 7], 9), 4))
    inner = int(rollout.lengths.sum()) - len(rollout)
    assert len(pack(rollout).ids) == 3 + 7 + inner
    other = torch.where(torch.arange(8) == 1, 7, rollout.group)
    assert len(pack(replace(rollout, group=other)).ids) == 3 + 3 + 7 + inner


def test_the_packed_models_samples_are_the_padded_models(
    model: Qwen2ForCausalLM, packing_model: Qwen2ForCausalLM
) -> None:
    for given in (prompts([3, 7, 5, 1], 7), prompts([4, 4], 4), in_groups(prompts([3, 6], 6), 8)):
        plain, packed = roll(model, given), roll(packing_model, given)
        assert torch.equal(plain.responses, packed.responses)
        assert plain.ended.any() or len(given) < 16
        torch.testing.assert_close(plain.logprobs, packed.logprobs, atol=1e-5, rtol=0)


def test_a_captured_step_draws_the_same_responses(
    packing_model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's way of decoding, here operation by operation; kept from one rollout to the next, while weights change."""
    moved: list[int] = []
    together = cuda_graph_decode.CapturedStep._together

    def noted(step, going, order):
        moved.append(len(order))
        return together(step, going, order)

    changed = copy.deepcopy(packing_model)
    few, many = prompts([3, 7, 5, 1], 7), in_groups(prompts([3, 6], 60), 8)
    for given, longest in ((many, 16), (few, 16), (prompts([9], 9), 1), (many, 20)):
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter *= 1.01
        grown = roll(changed, given, max_length=longest)
        monkeypatch.setattr(sampling, "captures", lambda model: True)
        monkeypatch.setattr(cuda_graph_decode, "LOOK", 2)
        monkeypatch.setattr(cuda_graph_decode, "FEWEST", 2)
        monkeypatch.setattr(cuda_graph_decode.CapturedStep, "_together", noted)
        played = roll(changed, given, max_length=longest)
        monkeypatch.undo()
        for name in ("responses", "lengths", "ended"):
            assert torch.equal(getattr(grown, name), getattr(played, name))
        torch.testing.assert_close(grown.logprobs, played.logprobs, atol=2e-5, rtol=0)
    assert len(set(moved)) > 1  # rows that go on have moved together, and those that were left again
    kept = cuda_graph_decode._kept[changed]
    assert (kept.rows, kept.columns, kept.length) == (16, 128, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_waits_for_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without numbers: a step that asked for one, or whose shapes hung on one, could not be captured."""
    monkeypatch.setattr(cuda_graph_decode, "_plainly", lambda device: nullcontext())
    with torch.device("meta"):
        model = Qwen2ForCausalLM(CONFIG)
    decoder = gate.way_of(model).decoder
    assert decoder is not None
    step = cuda_graph_decode.CapturedStep(model, decoder, draw, rows=8, columns=64, length=16, dtype=dtype)
    with torch.no_grad():
        step._token(8)
    step.draw = lambda logits, uniform: draw(logits, uniform) if uniform.any() else draw(logits, 0 * uniform)
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        step._token(8)


def test_what_is_sampled_follows_the_exact_distribution(packing_model: Qwen2ForCausalLM) -> None:
    """Chi-square of two-token responses against the product of the softmaxes, rows leaving the batch in between."""
    count = 20000
    given = in_groups(prompts([3], 3), count)
    rollout = roll(packing_model, given, max_length=2)
    first = packing_model.requires_grad_(False)(given.ids[:1]).logits[0, -1].div(0.9).softmax(0)
    observed = torch.bincount(rollout.responses[:, 0], minlength=40)
    likely = int(observed[2:].argmax()) + 2
    assert chi_square(observed, first * count) < 2
    after = torch.cat([given.ids[:1], torch.tensor([[likely]])], 1)
    second = packing_model(after).logits[0, -1].div(0.9).softmax(0)
    taken = rollout.responses[rollout.responses[:, 0] == likely, 1]
    assert chi_square(torch.bincount(taken, minlength=40), second * len(taken)) < 2


def chi_square(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Over its degrees of freedom (2 and more of 20 or more happens once in 200), cells below 5 in one."""
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None].clamp(min=1e-9)])
    kept = expected > 1
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    return float(statistic) / max(1, int(kept.sum()) - 1)


@pytest.mark.parametrize("vocabulary", [5, 128, 300, 2048])
def test_draws_are_the_inverse_of_the_cumulated_probabilities(vocabulary: int) -> None:
    logits = 3 * torch.randn(400, vocabulary, generator=torch.Generator().manual_seed(2))
    logits[:, 1] = -torch.inf
    u = uniforms(0, 0, torch.arange(400), 0)
    tokens, logprobs = draw(logits, u)
    cdf = logits.double().softmax(-1).cumsum(-1)
    upper = cdf.gather(1, tokens[:, None]).squeeze(1)
    lower = upper - logits.double().softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    assert ((lower <= u + 1e-6) & (u <= upper + 1e-6)).all()
    assert (tokens != 1).all()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1))
