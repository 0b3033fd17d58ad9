"""From prefixes to tokenised prompts: templates and batches."""

from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.rl.randomness import permutation
from rlhf_cli.rl.rollout import Prompts


@dataclass(frozen=True)
class Template:
    """chat: the tokenizer's template around an explicit system text and one user turn; plain: the user text."""

    name: str
    system: str | None
    user: str

    def ids(self, tokenizer: Any, prefix: str) -> list[int]:
        text = self.user.replace("{prefix}", prefix)
        if self.name == "plain":
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokenizer.chat_template:
            raise UserError("the actor's tokenizer has no chat template: use prompt=plain")
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class PromptSet:
    """Prefixes with their classes and token ids."""

    prefixes: list[str]
    classes: list[str]
    ids: list[list[int]]
    pad_id: int

    @classmethod
    def make(cls, rows: Any, template: Template, tokenizer: Any, *, pad_id: int) -> "PromptSet":
        """`rows`: records with `prefix` and `class`."""
        prefixes = [row["prefix"] for row in rows]
        ids = [template.ids(tokenizer, prefix) for prefix in prefixes]
        return cls(prefixes, [row["class"] for row in rows], ids, pad_id)

    def __len__(self) -> int:
        return len(self.prefixes)

    def batch(self, step: int, *, count: int, seed: int) -> list[int]:
        """Which prompts a step takes: shuffled epochs, a pure function of (seed, step)."""
        first = (step - 1) * count
        wanted = range(first, first + count)
        shuffled = {e: permutation(seed, 0, e, len(self)) for e in {p // len(self) for p in wanted}}
        return [int(shuffled[p // len(self)][p % len(self)]) for p in wanted]

    def prompts(self, chosen: list[int], *, group_size: int = 1) -> Prompts:
        """Left-padded prompts, each `group_size` times in a row."""
        rows = [self.ids[i] for i in chosen for _ in range(group_size)]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in rows])
        return Prompts(
            ids=ids,
            lengths=torch.tensor([len(row) for row in rows]),
            index=torch.arange(len(rows)),
            group=torch.arange(len(chosen)).repeat_interleave(group_size),
        )
