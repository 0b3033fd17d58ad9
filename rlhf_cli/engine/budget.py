"""The bytes that a run needs on its device, from its models' shapes alone: nothing is loaded.

An estimate, on the safe side: activations are counted as the fast way's plain autograd keeps them, the largest
micro-batch as all of it at its longest, and nothing as freed early.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

GB = 2**30
CONTEXT = int(0.6 * GB)
"""Of CUDA itself, its libraries and what its allocator cannot use."""
LOGIT_COPIES = 3
"""Of a chunk of logits, float32, at once: exponentials, their scratch, their gradient."""


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True

    @property
    def linear(self) -> int:
        """Weights of the layers' matrices."""
        size = self.hidden // self.heads
        attention = self.hidden * size * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        tables = 1 if self.tied else 2
        return self.linear + tables * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters of every linear layer."""
        size, h = self.hidden // self.heads, self.hidden
        wide, narrow = self.heads * size, self.kv_heads * size
        sides = (h + wide) + 2 * (h + narrow) + (wide + h) + 3 * (h + self.intermediate)
        return self.layers * rank * sides

    @staticmethod
    def of(config: Any) -> "Shape":
        """From a transformers config with a Llama-like decoder's names. Raises AttributeError for others."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                 "vocab_size", "tie_word_embeddings")  # fmt: skip
        return Shape(*(getattr(config, name) for name in names))


SHAPES = {
    "Qwen/Qwen2.5-0.5B": Shape(896, 24, 14, 2, 4864, 151_936),
    "Qwen/Qwen2.5-1.5B": Shape(1536, 28, 12, 2, 8960, 151_936),
    "Qwen/Qwen2.5-3B": Shape(2048, 36, 16, 2, 11_008, 151_936),
    "HuggingFaceTB/SmolLM2-135M": Shape(576, 30, 9, 3, 1536, 49_152),
}
"""As their config.json says; an Instruct model has its base's."""
CLASSIFIERS = {
    "roberta_large": 355_000_000,
    "roberta_base": 125_000_000,
    "minilm": 22_700_000,
    "minilm_weak": 22_700_000,
}
"""Parameters."""


@dataclass(frozen=True)
class Work:
    """How much goes through at a time."""

    rows: int
    """Of a forward or backward pass (optim.micro_batch_size)."""
    decoded: int
    """Responses sampled at a time (rollout.micro_batch_size)."""
    prompt: int
    response: int
    checkpointing: bool
    half: bool
    """Products in bfloat16, on a GPU."""


def budget(
    actor: Shape,
    *,
    critic: str,
    judges: Iterable[int],
    work: Work,
    rank: int = 0,
    captured: bool = True,
    moments: int = 8,
) -> dict[str, int]:
    """Bytes by what they are for. `critic`: none, shared or own (of the actor's shape); `judges`: their parameters;
    `rank`: of LoRA adapters, 0 without; `captured`: decoding steps are, and keep a copy of the weights;
    `moments`: bytes that the optimizer keeps of a weight that learns."""
    small, tokens = 2 if work.half else 4, work.rows * (work.prompt + work.response)
    trained = actor.adapters(rank) if rank else actor.parameters
    weights = 4 * actor.parameters + (4 * trained if rank else 0)
    if work.half and captured:
        weights += 2 * actor.parameters
    found = {
        "actor's weights": weights,
        "reference": 0 if rank else small * actor.parameters,
        "critic's weights": 4 * actor.parameters if critic == "own" else 0,
        "optimizers": moments * trained + (moments * actor.parameters if critic == "own" else 0),
        "gradients": 4 * (max(trained, actor.parameters) if critic == "own" else trained),
        "sums with adapters": (4 + small) * actor.linear if rank else 0,
        "judges": small * sum(judges),
        "activations": tokens * activations(actor, checkpointing=work.checkpointing),
        "logits": LOGIT_COPIES * 4 * min(work.rows * work.response * actor.vocabulary, 2**26),
        "KV cache": small * 2 * work.decoded * (work.prompt + work.response) * actor.layers * kv_width(actor),
        "CUDA": CONTEXT if work.half else 0,
    }
    return {name: size for name, size in found.items() if size}


SHARE = 0.9
"""Of free memory, that rows are counted on."""


def rows_within(
    free: int, actor: Shape, *, critic: str, work: Work, rank: int = 0, captured: bool = True, moments: int = 8
) -> int:
    """The rows of a pass, `work.rows` at most and 1 at least, that fit in `free` bytes once models are loaded: beside
    optimizers, gradients, sums with adapters, the copy to decode with, logits, keys and values."""
    parts = budget(actor, critic=critic, judges=[], work=work, rank=rank, captured=captured, moments=moments)
    coming = ("optimizers", "gradients", "sums with adapters", "logits", "KV cache")
    later = sum(parts.get(name, 0) for name in coming) + (2 * actor.parameters if work.half and captured else 0)
    row = (work.prompt + work.response) * activations(actor, checkpointing=work.checkpointing)
    return max(1, min(work.rows, int((SHARE * free - later) // row)))


def kv_width(shape: Shape) -> int:
    return shape.kv_heads * (shape.hidden // shape.heads)


def activations(shape: Shape, *, checkpointing: bool) -> int:
    """Bytes a token: of every layer, or of one layer and every layer's input."""
    layer = 4 * (2 * shape.intermediate + 10 * shape.hidden)
    return layer + 4 * shape.hidden * shape.layers if checkpointing else layer * shape.layers
