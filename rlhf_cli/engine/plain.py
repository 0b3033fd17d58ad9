"""The plain way: `model.forward` with public arguments and public caches, for every causal LM that transformers loads.

Logits are the model's own, so whatever it does after its head is in them. Rows are read padded on the right, where a
causal model sees nothing of it, and sampled padded on the left, where the gate has seen that this changes nothing.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.engine.lora import adapters_of
from rlhf_cli.rl.rollout import Rollout

CACHES = ("cache", "past_key_values", "cache_params", "state")
"""Names of the KV cache or recurrent state among the arguments and outputs of `forward`: transformers renames it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gate has found of a model."""

    names: frozenset[str]
    """Arguments of `forward` that may be used."""
    batches: str = "padded"
    """How rows are read: padded (on the right), or equal (only rows of one length together)."""
    left_padding: bool = False
    """Rows of different prompts may be sampled together."""
    caches: bool = True
    selects: bool = False
    """Rows may leave the cache."""


def argument_names(model: Any) -> frozenset[str]:
    """The arguments of the model's `forward`."""
    return frozenset(inspect.signature(model.forward).parameters)


def call(
    model: Any,
    names: frozenset[str],
    ids: Int[Tensor, "B T"],
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    keep: int = 0,
    use_cache: bool = False,
    cache: Any = None,
) -> Any:
    """The model's output, from those of the arguments that it takes."""
    given: dict[str, Any] = {"use_cache": use_cache}
    if mask is not None:
        given["attention_mask"] = mask
    if positions is not None:
        given["position_ids"] = positions
    if keep:
        given["logits_to_keep"] = keep
    given = {name: value for name, value in given.items() if name in names}
    if cache is not None:
        given[cache_name(names)] = cache
    adapters = adapters_of(model)
    if adapters is None:
        return model(input_ids=ids, **given)
    weights = adapters.added({f"{name}.weight": model.get_submodule(name).weight for name in adapters.names})
    sums = {f"{name}.weight": weights[f"{name}.weight"] for name in adapters.names}
    return torch.func.functional_call(model, sums, kwargs={"input_ids": ids, **given})


def cache_name(names: frozenset[str]) -> str:
    """The name under which `forward` takes its cache. Raises TypeError where it takes none that is known."""
    found = [name for name in CACHES if name in names]
    if not found:
        raise TypeError(f"forward takes no cache under a name that rlhf knows ({', '.join(CACHES)})")
    return found[0]


def returned_cache(output: Any) -> Any:
    for name in CACHES:
        if (found := output.get(name)) is not None:
            return found
    raise TypeError("forward returns no cache")


def outputs(model: Any, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T _"]:
    """Logits of a causal LM, or last hidden states of a trunk, at every position."""
    return _told(call(model, argument_names(model), ids))


def _told(output: Any) -> Tensor:
    logits = output.get("logits")
    return output["last_hidden_state"] if logits is None else logits


def response_outputs(
    model: Any, rollout: Rollout, facts: Facts, head_inputs: list[Tensor] | None = None
) -> Float[Tensor, "M _"]:
    """Logits (of a trunk: hidden states) from which each response token was predicted, in the order of
    `responses[mask]`. What the head was given for them is added to `head_inputs`."""
    if facts.batches == "equal":
        return _of_equal_lengths(model, rollout, facts, head_inputs)
    before, after = rollout.prompt_lengths, rollout.lengths
    width, total = rollout.prompts.shape[1], before + after
    at = torch.arange(int(total.max()) - 1)  # nothing is predicted from the last token
    index = width - before[:, None] + at  # prompts end where responses begin
    index = torch.where(at < total[:, None], index, index[:, :1]).to(rollout.device, non_blocking=True)
    ids = rollout.ids.gather(1, index)
    skipped = int(before.min()) - 1
    keep = len(at) - skipped if "logits_to_keep" in facts.names else 0
    seen: list[Tensor] = []
    with _noting(model, seen if head_inputs is not None else None):
        told = _told(call(model, facts.names, ids, keep=keep))
    wanted = (at >= before[:, None] - 1) & (at < total[:, None] - 1)

    def chosen(x: Tensor) -> Tensor:
        at_them = wanted[:, skipped:] if x.shape[1] == len(at) - skipped else wanted
        if bool(at_them.all()):
            return x.flatten(0, 1)  # no second copy of so much
        return x.flatten(0, 1)[at_them.flatten().nonzero().squeeze(1).to(x.device, non_blocking=True)]

    if head_inputs is not None:
        head_inputs.append(chosen(seen[-1]))
    return chosen(told)


def _of_equal_lengths(
    model: Any, rollout: Rollout, facts: Facts, head_inputs: list[Tensor] | None
) -> Float[Tensor, "M _"]:
    total, inputs = rollout.prompt_lengths + rollout.lengths, list[Tensor]()
    found, order = [], []
    mask = rollout.host_mask
    numbers = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, torch.arange(int(mask.sum())))
    each = Facts(facts.names)
    for length in total.unique().tolist():
        rows = (total == length).nonzero().squeeze(1)
        some = rollout.select(rows)
        found.append(response_outputs(model, some, each, inputs if head_inputs is not None else None))
        order.append(numbers[rows][:, : some.responses.shape[1]][some.host_mask])
    back = torch.cat(order).argsort().to(rollout.device, non_blocking=True)
    if head_inputs is not None:
        head_inputs.append(torch.cat(inputs)[back])
    return torch.cat(found)[back]


class _noting:
    """Inside, what the model's head is given is added to `seen`, if that is a list."""

    def __init__(self, model: Any, seen: list[Tensor] | None) -> None:
        self.handle = None
        if seen is not None:
            head = model.get_output_embeddings()
            self.handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: Any) -> None:
        if self.handle is not None:
            self.handle.remove()


class PlainDecoder:
    """Rows of prompts that grow by a token at a time; `logits` [B, V] are of each row's next one."""

    logits: Float[Tensor, "B V"]

    def __init__(self, model: Any, facts: Facts, prompts: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]) -> None:
        self.model, self.facts, self.names = model, facts, facts.names
        width = int(lengths.max())
        self.padded = facts.left_padding and bool((lengths < width).any())
        self.ids, self.cache = prompts[:, prompts.shape[1] - width :], None
        self.lengths = lengths.to(prompts.device, non_blocking=True)
        self.real = torch.arange(width, device=prompts.device) >= width - self.lengths[:, None]
        self._forward(self.ids)

    def step(self, tokens: Int[Tensor, " B"]) -> None:
        """One more token for every row."""
        self.lengths = self.lengths + 1
        self.real = torch.cat([self.real, torch.ones_like(self.real[:, :1])], 1)
        if not self.facts.caches:
            self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self._forward(tokens[:, None] if self.facts.caches else self.ids)

    def select(self, rows: Int[Tensor, " b"]) -> None:
        """These rows go on, in this order. With a cache, only where `facts.selects`."""
        self.lengths, self.real, self.ids, self.logits = (
            x[rows] for x in (self.lengths, self.real, self.ids, self.logits)
        )
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def _forward(self, ids: Int[Tensor, "B t"]) -> None:
        mask = positions = None
        if self.padded:
            mask = self.real.long()
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        keep = 1 if "logits_to_keep" in self.names else 0
        output = call(
            self.model,
            self.names,
            ids,
            mask=mask,
            positions=positions,
            keep=keep,
            use_cache=self.facts.caches,
            cache=self.cache,
        )
        if self.facts.caches:
            self.cache = returned_cache(output)
        self.logits = output["logits"][:, -1].float()
