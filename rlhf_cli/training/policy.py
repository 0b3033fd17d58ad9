"""The models that are trained: policy and critic, each with its optimizer, and how the policy samples."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from rlhf_cli.data.prompts import PromptSet, response_texts
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.memory import Memory
from rlhf_cli.engine.value_head import SharedCritic, ValueModel
from rlhf_cli.engine.vllm_engine import VllmEngine
from rlhf_cli.rewards.scorer import Texts
from rlhf_cli.rl.rollout import Rollout
from rlhf_cli.training.optimizer import Optimizer
from rlhf_cli.training.pretraining import Pretraining

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generation:
    """How responses are sampled."""

    eos_ids: tuple[int, ...]
    pad_id: int
    max_length: int
    """Tokens of a response, at most."""
    temperature: float = 1.0
    micro_batch_size: int = 64
    """Responses decoded at a time."""
    seed: int = 0
    cuda_graphs: bool = True


@dataclass
class Policy:
    """The language model that learns."""

    model: Any
    tokenizer: Any
    optimizer: Optimizer | None
    """None: evaluation only."""
    generation: Generation
    compute: Compute
    micro_batch_size: int = 8
    """Rows of a forward or backward pass, where sequences are longest."""
    memory: Memory = field(default_factory=Memory)
    mix: Pretraining | None = None
    """The pretraining mix, if there is one."""
    engine: VllmEngine | None = None
    """What samples; None: rlhf's own."""

    def with_model(self, model: Any) -> "Policy":
        """The same policy with another model, for evaluation."""
        return replace(self, model=model, optimizer=None)

    def texts(self, rollout: Rollout, prompts: PromptSet, chosen: list[int]) -> Texts:
        """The text of a rollout; `chosen` names the prompt of each row. Special tokens are in none."""
        ends = self.generation.eos_ids
        tokens = [
            [t for t in row[:length].tolist() if t not in ends]
            for row, length in zip(rollout.responses.cpu(), rollout.lengths.tolist(), strict=True)
        ]
        asked = [prompts.ids[i] for i in chosen]
        return Texts(
            prefixes=[prompts.prefixes[i] for i in chosen],
            prompts=self.decode(asked),
            responses=response_texts(self.tokenizer, asked, tokens),
            tokens=tokens,
        )

    def decode(self, rows: list[list[int]]) -> list[str]:
        return list(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def fit(self, kind: str, work: Callable[[int], T]) -> T:
        """`work(rows)` at `micro_batch_size` rows at a time, or fewer where memory runs out."""
        return self.memory.fit(kind, self.micro_batch_size, work)


@dataclass
class Critic:
    """A value head on a trunk of its own, or on the policy's."""

    model: ValueModel | SharedCritic
    optimizer: Optimizer | None
    """None on the policy's trunk: it learns with the policy."""
    one_minibatch: bool = False
    """It learns from a whole batch at once, without gradient checkpointing: the forward pass that estimated values can
    be that of its first update."""

    @property
    def head_on_policy(self) -> nn.Module | None:
        """The value head, where it reads the policy's own hidden states."""
        return self.model.score if isinstance(self.model, SharedCritic) else None


def models(policy: Policy, critic: Critic | None, reference: Any) -> tuple[Any, Any, Any]:
    """(policy's, critic's or None, reference): the models that are sharded, gathered and saved."""
    return policy.model, None if critic is None else critic.model, reference


def zero_grad(policy: Policy, critic: Critic | None) -> None:
    """After an aborted update: gradients cleared, models in eval mode."""
    for learns in (policy, critic):
        if learns is not None and learns.optimizer is not None:
            learns.optimizer.zero_grad()
            learns.optimizer.model.eval()
