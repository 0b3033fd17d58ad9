"""precision=bf16 on the CPU: our layers, head and decoding against float64 and against autocast's own rounding."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers.qwen import born, prompts, roll
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlhf_cli.engine import casts, eager_decode, gate
from rlhf_cli.engine import sample as sampling
from rlhf_cli.engine.decoder import Decoder
from rlhf_cli.engine.forward import differentiable_twice, packed_states
from rlhf_cli.engine.kv_cache import KVCache
from rlhf_cli.engine.lm_head import token_logprobs
from rlhf_cli.engine.packing import pack
from rlhf_cli.engine.read import response_logprobs, response_values
from rlhf_cli.rl.rollout import Prompts, Rollout
from rlhf_cli.training.optimizer import Optimizer, Schedule

BF16 = torch.autocast("cpu", torch.bfloat16)
CONFIG = Qwen2Config(
    vocab_size=60,
    hidden_size=eager_decode.WIDE,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=512,
    tie_word_embeddings=True,
    initializer_range=0.08,
)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    made = born(CONFIG)
    assert gate.fast(made, 64)
    return made


@pytest.fixture(scope="module")
def rollout(model: Qwen2ForCausalLM) -> Rollout:
    return roll(model, prompts([3, 7, 5, 1, 6], 9))


def decoder_of(model: Qwen2ForCausalLM) -> Decoder:
    found = gate.way_of(model).decoder
    assert found is not None
    return found


def gradients(model: Qwen2ForCausalLM, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, the gradient of a weighted sum of log-probs and entropies in all weights), as float64."""
    logprobs, entropies = response_logprobs(model, rollout, temperature=0.9)
    weights = torch.randn(2, *logprobs.shape, generator=torch.Generator().manual_seed(1))
    loss = (torch.stack([logprobs, entropies]) * weights).sum()
    found = torch.autograd.grad(loss, list(model.parameters()))
    return logprobs.detach().double(), torch.cat([g.double().flatten() for g in found])


def test_rounding_is_about_autocasts(model: Qwen2ForCausalLM, rollout: Rollout) -> None:
    exact = gradients(copy.deepcopy(model).double(), rollout)
    with BF16:
        ours = gradients(model, rollout)
        with sdpa_kernel(SDPBackend.MATH), differentiable_twice():
            theirs = gradients(model, rollout)
    for right, one, other in zip(exact, ours, theirs, strict=True):
        off, as_usual = (float((x - right).norm() / right.norm()) for x in (one, other))
        assert 1e-5 < off < 1.25 * as_usual < 0.1  # above 1e-5: the products really are in bfloat16


def test_a_frozen_model_in_bfloat16_is_as_near_as_its_master(model: Qwen2ForCausalLM, rollout: Rollout) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        exact = response_logprobs(copy.deepcopy(model).double(), rollout, temperature=0.9)[0]
        with BF16:
            master, frozen = (response_logprobs(m, rollout, temperature=0.9)[0] for m in (model, low))
    assert frozen.dtype == torch.float32
    assert float((frozen - exact).norm()) < 2 * float((master - exact).norm())


def test_a_copy_follows_its_weight() -> None:
    layer = torch.nn.Linear(4, 8)
    weight = layer.weight
    first = casts.cached_cast(weight, torch.bfloat16)
    assert casts.cached_cast(weight, torch.bfloat16) is first
    assert casts.cached_cast(weight, torch.float32) is weight

    def is_current() -> bool:
        return torch.equal(casts.cached_cast(weight, torch.bfloat16), weight.to(torch.bfloat16))

    with torch.no_grad():
        weight.mul_(2)
    assert is_current()
    with torch.inference_mode():
        weight.mul_(2)
        assert is_current()
    layer.load_state_dict({"weight": torch.randn(8, 4), "bias": torch.zeros(8)})
    assert is_current()
    learner = Optimizer(layer, lr=0.1, schedule=Schedule(1))
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    learner.step(1)  # the fused optimizer does not count it as a change
    assert is_current()


def test_a_copy_goes_with_its_weight() -> None:
    before = set(casts._casts)
    weights = [torch.nn.Parameter(torch.randn(8, 4)) for _ in range(3)]
    for weight in weights:
        casts.cached_cast(weight, torch.bfloat16)
    assert len(set(casts._casts) - before) == 3
    del weight, weights
    assert set(casts._casts) <= before


def test_logits_are_rounded_in_their_factors_only() -> None:
    """A logit near 20 in bfloat16 is a multiple of 0.125; and the setting is as it was afterwards."""
    unit = torch.backends.mkldnn.matmul
    before = unit.fp32_precision
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 64, generator=generator).bfloat16().float() for n in (33, 500))
    labels = torch.randint(500, (33,), generator=generator)
    wanted = (states.double() @ weight.double().T).log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    for head in (weight, weight.bfloat16()):
        with BF16, torch.no_grad():
            found, _ = token_logprobs(states, head, labels, temperature=1.0)
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=0)
        assert unit.fp32_precision == before
    with pytest.raises(ZeroDivisionError), casts.factors_in(torch.bfloat16):
        _ = 1 / 0
    assert unit.fp32_precision == before


def test_numbers_of_rows_are_few_and_little_more_than_needed() -> None:
    sizes = {n: casts.padded(n) for n in range(4000)}
    assert all(n <= size < n + max(32, n / 4) for n, size in sizes.items())
    assert len(set(sizes.values())) < 60
    like = torch.zeros(1)
    assert casts.sizes(like, torch.bfloat16)(33) == 64
    assert casts.sizes(like, torch.float32)(33) == 33
    assert casts.sizes(like.to("meta"), torch.bfloat16)(33) == 33


def shared(model: Qwen2ForCausalLM) -> Rollout:
    """Two groups of four with one prompt each, responses of 8 tokens: fewer predictors than response tokens."""
    given = prompts([9, 9], 9)
    repeated = Prompts(*(x.repeat_interleave(4, 0) for x in (given.ids, given.lengths, given.index, given.group)))
    found = roll(model, replace(repeated, index=torch.arange(8)), max_length=8)
    return replace(found, lengths=torch.full_like(found.lengths, 8))


def test_tokens_that_fill_up_change_nothing(model: Qwen2ForCausalLM, rollout: Rollout) -> None:
    trunk, decoder = model.get_decoder(), decoder_of(model)
    for given in (rollout, shared(model), rollout.select(slice(0, 1))):
        plain, tokens = pack(given), int(given.lengths.sum())
        for size in (lambda n: n + 7, lambda n: 10 * n, lambda n, tokens=tokens: max(n, tokens)):
            filled = pack(given, size)
            assert len(filled.ids) >= len(plain.ids)
            assert torch.equal(filled.predictors, filled.predictors.unique())
            for layers in (nullcontext, differentiable_twice):
                with layers():
                    states = [packed_states(model, decoder, p) for p in (plain, filled)]
                    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-5)
                    direction = torch.randn(states[0].shape, generator=torch.Generator().manual_seed(2))
                    losses = [(s * direction).sum() for s in states]
                    wanted, had = (torch.autograd.grad(loss, list(trunk.parameters())) for loss in losses)
                for one, other in zip(had, wanted, strict=True):
                    torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("length", [1, 7, 8])
def test_groups_have_the_log_probs_of_float32(model: Qwen2ForCausalLM, length: int) -> None:
    given = shared(model)
    given = replace(given, lengths=torch.full_like(given.lengths, length))
    with torch.no_grad():
        exact = response_logprobs(model, given, temperature=0.9)[0]
        with BF16:
            low = response_logprobs(model, given, temperature=0.9)[0]
    torch.testing.assert_close(low, exact, atol=0.15, rtol=0)


def test_rows_that_are_done_may_stay_without_a_difference(
    model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = prompts([3, 7, 5, 1, 6, 2, 4, 8, 3, 5, 7], 9)
    alone = roll(model, given, max_length=40)
    initial = eager_decode.EagerDecoder.__init__

    def in_fours(self: eager_decode.EagerDecoder, *arguments: object) -> None:
        initial(self, *arguments)  # type: ignore[arg-type]
        self.unit = 4

    monkeypatch.setattr(eager_decode.EagerDecoder, "__init__", in_fours)
    together = roll(model, given, max_length=40)
    assert len(alone.lengths.unique()) > 3
    for name in ("responses", "lengths", "ended"):
        assert torch.equal(getattr(together, name), getattr(alone, name))
    torch.testing.assert_close(together.logprobs, alone.logprobs, atol=1e-5, rtol=0)


def test_what_was_sampled_has_the_log_probs_of_training(model: Qwen2ForCausalLM) -> None:
    with BF16:
        sampled = roll(model, prompts([3, 7, 5, 1, 6, 2, 4, 8, 3, 5], 9), max_length=30)
        cache = KVCache(0, torch.arange(1), 9)
        made = eager_decode.EagerDecoder(model, decoder_of(model), model.lm_head.weight, cache)
        assert made.dtype == torch.bfloat16
        with torch.no_grad():
            read, _ = response_logprobs(model, sampled, temperature=0.9)
    assert sampled.logprobs.dtype == torch.float32
    torch.testing.assert_close(sampled.logprobs, read, atol=0.1, rtol=0)
    assert float((sampled.logprobs - read).abs()[sampled.mask].mean()) < 0.02


def test_rows_to_keep_are_those_that_go_on_and_the_first_of_the_others() -> None:
    going = torch.tensor([False, True, False, True, False, True])
    stay = sampling.some_more(going, 3, 4)
    assert stay is not None
    assert stay.tolist() == [True, True, False, True, False, True]
    assert sampling.some_more(going, 3, 8) is None
    one = sampling.some_more(going, 3, 1)
    assert one is not None
    assert torch.equal(one, going)
    assert sampling.some_more(torch.ones(6, dtype=torch.bool), 6, 1) is None


def test_values_in_bfloat16_are_near(model: Qwen2ForCausalLM, rollout: Rollout) -> None:
    from transformers import Qwen2ForTokenClassification

    torch.manual_seed(0)
    critic = Qwen2ForTokenClassification(Qwen2Config(**CONFIG.to_dict() | {"num_labels": 1})).eval()
    with torch.no_grad():
        exact = response_values(critic, rollout)
        with BF16:
            low = response_values(critic, rollout)
    assert low.dtype == torch.float32
    assert float((low - exact).norm() / exact.norm()) < 0.02
