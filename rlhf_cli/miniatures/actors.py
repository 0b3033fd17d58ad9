"""Mini Qwen2 actors: a base model that knows reviews, an instruct model that continues them when asked."""

import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rlhf_cli.data.prompts import Template
from rlhf_cli.data.reviews import Review
from rlhf_cli.miniatures.optimize import descend

CHAT = Template(
    "chat", "You are a helpful assistant.", "Continue the following movie review text.\nReview start:\n{prefix}"
)
IGNORED = -100
ANSWER = 46
"""Tokens of an answer, its end not among them: what a run at this scale lets a response have."""


def new_actor(vocabulary: int, pad: int) -> Any:
    """About a million parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=pad,
        pad_token_id=pad,
    )
    return Qwen2ForCausalLM(config)


Example = tuple[list[int], list[int]]
"""(ids, labels)."""


def documents(reviews: list[Review], tokenizer: Any, *, seed: int, width: int) -> list[Example]:
    """Reviews that end in <|endoftext|>; one in ten in the chat format, so that the base knows of it."""
    rng = random.Random(f"{seed}/documents")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    examples = []
    for review in reviews:
        if rng.random() < 0.1:
            examples.append(dialogue(review, tokenizer, rng, width=width, answer_only=False))
        else:
            ids = [*tokenizer(review.text, add_special_tokens=False)["input_ids"], end][:width]
            examples.append((ids, ids))
    return examples


def dialogues(reviews: list[Review], tokenizer: Any, *, seed: int, width: int) -> list[Example]:
    rng = random.Random(f"{seed}/dialogues")
    return [dialogue(review, tokenizer, rng, width=width, answer_only=True) for review in reviews]


def dialogue(review: Review, tokenizer: Any, rng: random.Random, *, width: int, answer_only: bool) -> Example:
    """A prompt with the review's start, answered by the rest of its sentence and up to two more that fit whole.

    The answer keeps its leading space: a small vocabulary holds few words without one.
    """
    words = review.text.split()
    low, high = rng.choice([(4, 6), (10, 16)])
    cut = min(rng.randint(low, high), len(words) - 1)
    prompt = CHAT.ids(tokenizer, " ".join(words[:cut]))
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(words[cut:]))[: 2 + rng.randint(0, 1)]
    pieces = tokenizer([" " + sentence for sentence in sentences], add_special_tokens=False)["input_ids"]
    ids = list(pieces[0][:ANSWER])
    for piece in pieces[1:]:
        ids += piece if len(ids) + len(piece) <= ANSWER else []
    ids.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    whole = (prompt + ids)[:width]
    labels = [IGNORED] * len(prompt) + ids if answer_only else list(whole)
    return whole, labels[:width]


def fit(
    model: Any, examples: list[Example], *, steps: int, batch: int, lr: float, seed: int, tick: Callable[[], None]
) -> None:
    """Next-token training."""
    drawn = batches(examples, min(batch, len(examples)), random.Random(f"{seed}/fit"))
    descend(model, lambda: next_token_loss(model, next(drawn)), steps=steps, lr=lr, tick=tick)


def batches(examples: list[Example], batch: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end, each of like lengths, so that little of it is padding."""
    several = min(8, len(examples) // batch)
    while True:
        pool = sorted(rng.sample(examples, several * batch), key=lambda example: len(example[0]))
        parts = [pool[at : at + batch] for at in range(0, len(pool), batch)]
        yield from rng.sample(parts, several)


def next_token_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; the LM head runs on those only."""
    width = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in examples])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in examples])
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # right padding: causal is enough
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(states[wanted]), targets[wanted])


@torch.inference_mode()
def perplexity(model: Any, examples: list[Example], batch: int = 50) -> float:
    """exp of the mean cross-entropy of all labelled tokens."""
    total, count = 0.0, 0
    for at in range(0, len(examples), batch):
        some = examples[at : at + batch]
        labelled = sum(label != IGNORED for _, labels in some for label in labels[1:])
        total += labelled * float(next_token_loss(model, some))
        count += labelled
    return math.exp(total / count)
