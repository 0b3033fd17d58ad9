"""From prefixes to tokenised prompts: templates and batches."""

import re
from dataclasses import dataclass, replace
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
    escape: bool = False
    """Special tokens in a prefix are read as text."""

    def ids(self, tokenizer: Any, prefix: str) -> list[int]:
        if self.escape and CONTROL.search(prefix):
            return self._escaped(tokenizer, prefix)
        text = self.user.replace("{prefix}", prefix)
        if self.name == "plain":
            return with_bos(tokenizer, text)
        return list(tokenizer(self._rendered(tokenizer, text), add_special_tokens=False)["input_ids"])

    def _escaped(self, tokenizer: Any, prefix: str) -> list[int]:
        """The prefix by itself, split where its special tokens are, between what stands around it."""
        text = self.user.replace("{prefix}", MARK)
        before, after = (text if self.name == "plain" else self._rendered(tokenizer, text)).split(MARK)
        told = list(tokenizer(prefix, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        start = with_bos(tokenizer, before) if self.name == "plain" else _bare(tokenizer, before)
        return start + told + _bare(tokenizer, after)

    def fitted(self, tokenizer: Any) -> "Template":
        """This template, or one with the system text in the user turn where the tokenizer's chat template has no
        system role (Gemma's raises an error, others drop it)."""
        from jinja2 import TemplateError

        if self.name == "plain" or self.system is None:
            return self
        try:
            kept = self.system in self._rendered(tokenizer, "x")
        except TemplateError:
            kept = False
        return self if kept else replace(self, system=None, user=f"{self.system}\n\n{self.user}")

    def _rendered(self, tokenizer: Any, text: str) -> str:
        if not tokenizer.chat_template:
            raise UserError("the actor's tokenizer has no chat template: use prompt=plain")
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


CONTROL = re.compile(r"<\|[\w ]+\|>|</?s>|\[/?INST\]|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>")
"""What tokenizers of chat models take for control tokens."""
MARK = "\ue000"
"""Of the place of the prefix: a character that nobody uses."""


def _bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def with_bos(tokenizer: Any, text: str) -> list[int]:
    """The text's ids after what the tokenizer puts before a text (BOS, if anything), once; nothing after it."""
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(text)["input_ids"])
    starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    before = whole[: next(starts, 0)]
    return bare if before and bare[: len(before)] == before else before + bare


def response_texts(tokenizer: Any, prompts: list[list[int]], responses: list[list[int]]) -> list[str]:
    """What responses say, with the space before their first word: sentencepiece tokenizers drop it from a text that
    is decoded by itself, so there a response is decoded behind the end of its prompt."""
    alone = tokenizer.batch_decode(responses, skip_special_tokens=True)
    if not _drops_spaces(tokenizer):
        return list(alone)
    before = [prompt[-CONTEXT:] for prompt in prompts]
    starts = tokenizer.batch_decode(before, skip_special_tokens=True)
    together = [start + response for start, response in zip(before, responses, strict=True)]
    wholes = tokenizer.batch_decode(together, skip_special_tokens=True)
    return [
        whole[len(start) :] if whole.startswith(start) else text
        for whole, start, text in zip(wholes, starts, alone, strict=True)
    ]


CONTEXT = 8
"""Tokens of a prompt before its response, for decoding."""


def _drops_spaces(tokenizer: Any) -> bool:
    ids = tokenizer("a film", add_special_tokens=False)["input_ids"]
    whole, pieces = tokenizer.decode(ids), [tokenizer.decode(ids[:1]), tokenizer.decode(ids[1:])]
    return bool(whole != "".join(pieces))


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
        template = template.fitted(tokenizer)
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
