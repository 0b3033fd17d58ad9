"""What rlhf samples, reads and differentiates, against plain transformers with each sequence alone and unpadded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.engine.dropout import train_mode
from rlhf_cli.engine.gate import fast, way_of
from rlhf_cli.engine.gradients import in_place
from rlhf_cli.engine.load import load_actor, load_critic, load_tokenizer
from rlhf_cli.engine.read import read, response_values
from rlhf_cli.engine.sample import sample
from rlhf_cli.rl.rollout import Prompts, Rollout

CPU = torch.device("cpu")
LENGTH = 14


@dataclass
class Differences:
    way: str
    numbers: float
    """Of log-probs (nats), entropies and values."""
    gradients: float
    """Relative to the largest of the same weight."""


def differences(folder: Path, temperature: float = 0.9) -> Differences:
    """The largest, over ragged prompts and groups, in eval and train mode, with gradient checkpointing where it is
    supported."""
    actor, tokens = load_actor(str(folder), device=CPU), load_tokenizer(str(folder))
    reference = plainly(folder)
    found = Differences(way(actor), 0.0, 0.0)
    for rollout in (draw(actor, tokens, [3, 9, 6, 1], 1), draw(actor, tokens, [7, 4], 3)):
        logprobs, entropies = alone(reference, rollout, temperature)
        found.numbers = max(found.numbers, gap(rollout.logprobs, logprobs))
        for training in (False, True):
            train_mode(actor, training)
            with torch.no_grad():
                reading = read(actor, rollout, temperature=temperature)
            found.numbers = max(found.numbers, gap(reading.logprobs, logprobs), gap(reading.entropies, entropies))
        (logprobs.sum() + 0.3 * entropies.sum()).backward()
        with in_place():
            reading = read(actor, rollout, temperature=temperature)
            (reading.logprobs.sum() + 0.3 * reading.entropies.sum()).backward()
        found.gradients = max(found.gradients, gradient_gap(actor, reference))
        for model in (actor, reference):
            model.zero_grad(set_to_none=True)
    found.numbers = max(found.numbers, value_gap(folder, reference, rollout))
    return found


def way(model: Any) -> str:
    if fast(model, 9 + LENGTH):
        return "fast"
    return "fast up to its window, then plain" if way_of(model).decoder else "plain"


def plainly(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def draw(model: Any, tokens: Any, lengths: list[int], group: int) -> Rollout:
    """Responses of different lengths to random prompts, each for `group` rows."""
    generator, count = torch.Generator().manual_seed(5), len(tokens)
    rows = [torch.randint(count, (n,), generator=generator) for n in lengths]
    width = max(lengths)
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows]).repeat_interleave(group, 0)
    many = torch.arange(len(ids))
    prompts = Prompts(ids, torch.tensor(lengths).repeat_interleave(group), many, many // group)
    ends = tuple(range(0, count, 12))
    return sample(
        model, prompts, eos_ids=ends, pad_id=0, max_length=LENGTH, temperature=0.9, seed=2, step=1, cuda_graphs=False
    )


def alone(model: Any, rollout: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [B, R], with gradient."""
    logprobs, entropies = torch.zeros(rollout.responses.shape), torch.zeros(rollout.responses.shape)
    for i, (ids, prompt) in enumerate(texts(rollout)):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, prompt - 1 : -1].float() / temperature
        all_ = logits.log_softmax(-1)
        logprobs[i, : len(all_)] = all_.gather(1, ids[prompt:, None]).squeeze(1)
        entropies[i, : len(all_)] = -(all_.exp() * all_).sum(-1)
    return logprobs, entropies


def texts(rollout: Rollout) -> list[tuple[Tensor, int]]:
    """(ids without padding, length of the prompt) of every row."""
    width = rollout.prompts.shape[1]
    sizes = zip(rollout.prompt_lengths.tolist(), rollout.lengths.tolist(), strict=True)
    return [
        (torch.cat([rollout.prompts[i, width - p :], rollout.responses[i, :n]]), p) for i, (p, n) in enumerate(sizes)
    ]


def gap(one: Tensor, other: Tensor) -> float:
    found = float((one - other).detach().abs().max())
    return found if found == found else float("inf")


def gradient_gap(model: Any, reference: Any) -> float:
    theirs, worst = dict(reference.named_parameters()), 0.0
    largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for name, parameter in model.named_parameters():
        want, had = theirs[name].grad, parameter.grad
        if want is None and had is None:
            continue
        want = torch.zeros_like(parameter) if want is None else want
        had = torch.zeros_like(parameter) if had is None else had
        worst = max(worst, gap(had, want) / max(float(want.abs().max()), 1e-3 * largest))
    return worst


def value_gap(folder: Path, reference: Any, rollout: Rollout) -> float:
    """Of a critic on the same model, saved and loaded again, from its head on what the LM head is given."""
    critic = load_critic(str(folder), device=CPU)
    torch.manual_seed(3)
    torch.nn.init.normal_(critic.score.weight, std=0.3)
    torch.nn.init.normal_(critic.score.bias)
    critic.save_pretrained(folder / "critic")
    again, seen = load_critic(str(folder / "critic"), device=CPU), list[Tensor]()
    handle = reference.get_output_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    wanted = torch.zeros(rollout.responses.shape)
    with torch.no_grad():
        for i, (ids, prompt) in enumerate(texts(rollout)):
            reference(input_ids=ids[None], use_cache=False)
            wanted[i, : len(ids) - prompt] = critic.score(seen[-1][0, prompt - 1 : -1]).squeeze(-1)
        shared = read(reference, rollout, temperature=1.0, value_head=critic.score)
        values = response_values(again, rollout)
    handle.remove()
    assert shared.values is not None
    return max(gap(values, wanted), gap(shared.values, wanted))


def reload_difference(folder: Path) -> float:
    """Of a saved actor, between what rlhf reads and what plain transformers gives."""
    actor, tokens = load_actor(str(folder), device=CPU), load_tokenizer(str(folder))
    rollout = draw(actor, tokens, [3, 9, 6, 1], 1)
    with torch.no_grad():
        return gap(read(actor, rollout, temperature=0.9).logprobs, alone(plainly(folder), rollout, 0.9)[0])
