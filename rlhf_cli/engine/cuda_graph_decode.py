"""One more token for every row, on a GPU: a step that is captured once, as a CUDA graph, and replayed.

Launched one by one from Python, the hundreds of kernels of a token take many times as long as they run; replayed they
are one launch. So nothing in a step waits for the host or changes its shape: what differs from token to token lies in
memory that the step itself moves on, and a row that is done goes on drawing tokens that nobody reads. A step is
captured for each power of two of rows; when half of them are done, the others move together and the smaller one goes
on. On the CPU, for tests, it runs operation by operation.
"""

import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding as embedded

from rlhf_cli.config.errors import RunFailed
from rlhf_cli.engine.casts import copy_together, in_float32
from rlhf_cli.engine.decoder import Decoder, last_norm, layer_weights, named_weights
from rlhf_cli.engine.kv_cache import KVCache, survivors
from rlhf_cli.engine.layer import Block, block, layer, norm_weight, pairs_of, rms_norm
from rlhf_cli.engine.memory import at_shortage, out_of_memory

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

COLUMNS = 64
"""Places in the cache come in so many, so that a prompt a little longer than the last needs no new capture."""
LOOK = 8
"""Tokens between two looks at which rows are done: a look waits for the GPU."""
FEWEST = 8
"""Rows of the smallest step: fewer cost what the weights cost to read, and no less."""

_kept: "WeakKeyDictionary[Any, CapturedStep]" = WeakKeyDictionary()
at_shortage(_kept.clear)


def captured_step(model: Any, decoder: Decoder, draw: Draw, *, rows: int, columns: int, length: int) -> "CapturedStep":
    """The model's captured steps, which are kept; captured anew where their memory is too small."""
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    autocast = torch.is_autocast_enabled(head.device.type)
    dtype = torch.get_autocast_dtype(head.device.type) if autocast else head.dtype
    rows, columns = steps_for(rows)[0], -(-columns // COLUMNS) * COLUMNS
    held = _kept.pop(model, None)  # if there is no memory for a larger one, this one is gone when fewer rows are tried
    if held is None or (held.dtype, held.device, held.read_at) != (dtype, head.device, table.data_ptr()):
        held = CapturedStep(model, decoder, draw, rows=rows, columns=columns, length=length, dtype=dtype)
    elif held.rows < rows or held.columns < columns or held.length < length:
        most = {"rows": max(held.rows, rows), "columns": max(held.columns, columns), "length": max(held.length, length)}
        del held
        held = CapturedStep(model, decoder, draw, **most, dtype=dtype)
    _kept[model] = held
    return held


def steps_for(rows: int) -> list[int]:
    """Rows of the steps that so many rows go through: powers of two, from the first that holds them all down."""
    first = max(FEWEST, 2 ** (rows - 1).bit_length())
    return [first >> i for i in range(first.bit_length()) if first >> i >= FEWEST]


class CapturedStep:
    """Decoding steps for at most `rows` rows, `columns` tokens with their prompts and responses of `length`, and the
    memory that they work in. `dtype`: of weights, keys, values and what is multiplied with them; else float32."""

    def __init__(
        self, model: Any, decoder: Decoder, draw: Draw, *, rows: int, columns: int, length: int, dtype: torch.dtype
    ) -> None:
        head = model.get_output_embeddings().weight
        self.rows, self.columns, self.length = rows, columns, length
        self.decoder, self.draw, self.dtype, self.device = decoder, draw, dtype, head.device
        self.table = model.get_input_embeddings().weight
        self.read_at = self.table.data_ptr()
        kv_heads, size = decoder.kv_heads, decoder.head_size
        with torch.inference_mode(False), torch.no_grad(), _plainly(self.device):
            weights = named_weights(model)
            self.layers = [_memory(block(w, decoder, dtype, joined=True)) for w in layer_weights(weights, decoder)]
            self.norm = torch.empty_like(norm_weight(last_norm(weights, decoder), decoder))
            self.head = torch.empty_like(head, dtype=dtype)
            self.cos, self.sin = decoder.angles(torch.arange(columns, device=self.device))
            self.kept = [self._zeros(2, rows, kv_heads, columns, size, dtype=dtype) for _ in self.layers]
            self.states = self._zeros(rows, decoder.hidden, dtype=dtype)
            self.temperature = torch.ones((), device=self.device)
            self.ends = self._zeros(len(head), dtype=torch.bool)
            self.uniforms = self._zeros(rows, length, dtype=torch.float64)
            self.positions, self.at, self.column = (self._zeros(n, dtype=torch.long) for n in (rows, 1, 1))
            self.seen = self._zeros(rows, columns, dtype=torch.bool)
            self.done = self._zeros(rows, dtype=torch.bool)
            self.responses = self._zeros(rows, length, dtype=torch.long)
            self.logprobs = self._zeros(rows, length)
        self.played: dict[int, Callable[[], None]] = {}
        self.pool: Any = None
        """Memory of temporary results, which the graphs share: only one is replayed at a time."""

    def begin(self, model: Any, count: int) -> None:
        """For `count` rows: steps that are not captured yet, and the weights as they are now."""
        for rows in steps_for(count):  # a capture writes over what a rollout has
            if rows not in self.played:
                self.played[rows] = self._capture(rows) if self.device.type == "cuda" else partial(self._token, rows)
        self._first()
        self._read(model)

    def rollout(
        self,
        prefilled: KVCache,
        states: Float[Tensor, "B H"],
        *,
        positions: Int[Tensor, " B"],
        real: Bool[Tensor, "B P"],
        uniforms: Float[Tensor, "B R"],
        ends: Bool[Tensor, " V"],
        temperature: float,
    ) -> tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]:
        """Responses and log-probs, of which only what is before the first end counts; after `begin`.

        `prefilled`: the cache with the prompts of each row; `states`: the last hidden states of these; `positions`:
        of the next token; `real`: where a prompt has tokens; `ends`: which tokens end a response.
        """
        (count, length), width = uniforms.shape, real.shape[1]
        for kept, store in zip(self.kept, prefilled.layers, strict=True):
            kept[:, :count, :, :width].copy_(store.read())
        self.states[:count].copy_(states)
        self.temperature.fill_(temperature)
        self.ends.copy_(ends)
        self.uniforms[:count, :length].copy_(uniforms)
        self.positions[:count].copy_(positions)
        self.column.fill_(width)
        self.seen[:count, :width].copy_(real)
        self.done.fill_(True)[:count].fill_(False)
        return self._played(steps_for(count), count, length)

    def _played(self, steps: list[int], count: int, length: int) -> tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]:
        found = (self.responses[:count, :length].clone(), self.logprobs[:count, :length].clone())
        order = torch.arange(count, device=self.device)  # whose rows stand where

        def write() -> None:
            for mine, theirs in zip((self.responses, self.logprobs), found, strict=True):
                theirs[order] = mine[: len(order), :length]

        with _plainly(self.device):
            for token in range(1, length + 1):
                self.played[steps[0]]()
                if token % LOOK or token == length:
                    continue
                going = ~self.done[: len(order)].cpu()
                if not (left := int(going.sum())):
                    break
                smaller = steps_for(left)
                if smaller[0] < steps[0]:
                    write()
                    order, steps = self._together(going, order), smaller
        write()
        return found

    def _together(self, going: Bool[Tensor, " n"], order: Int[Tensor, " n"]) -> Int[Tensor, " left"]:
        """Move the rows that go on to the first places; whose they are, from now on."""
        movers, holes, left = survivors(going)
        movers, holes = (x.to(self.device, non_blocking=True) for x in (movers, holes))
        own = (self.states, self.uniforms, self.positions, self.seen, self.responses, self.logprobs)
        for x in (order, *own):
            x[holes] = x[movers]
        for x in self.kept:
            x[:, holes] = x[:, movers]
        self.done.fill_(True)[:left].fill_(False)
        return order[:left]

    def _token(self, rows: int) -> None:
        """Draw the next token of the first `rows` rows, and read it."""
        logits = in_float32(torch.mm, self.states[:rows], self.head.T).div_(self.temperature)
        token, logprob = self.draw(logits, self.uniforms[:rows].index_select(1, self.at).squeeze(1))
        self.responses[:rows].index_copy_(1, self.at, token[:, None])
        self.logprobs[:rows].index_copy_(1, self.at, logprob[:, None])
        self.done[:rows] |= self.ends[token]
        self.seen[:rows].index_fill_(1, self.column, True)
        self.states[:rows].copy_(self._states(token))
        for moving in (self.at, self.column, self.positions):
            moving += 1

    def _states(self, token: Int[Tensor, " B"]) -> Float[Tensor, "B H"]:
        decoder, rows = self.decoder, len(token)
        x = embedded(token, self.table).float()
        if decoder.embedding_scale != 1:
            x = x * decoder.embedding_scale
        positions = self.positions[:rows]
        hidden = torch.zeros_like(self.seen[:rows, None], dtype=torch.float32).masked_fill_(
            ~self.seen[:rows, None], -torch.inf
        )
        angles = (self.cos[positions], self.sin[positions])
        for weights, kept, turns in zip(self.layers, self.kept, decoder.rotates, strict=True):
            see = partial(self._attend, kept=kept[:, :rows], hidden=hidden)
            x = layer(x, weights, decoder, angles if turns else None, see)
        return rms_norm(x, self.norm, decoder.epsilon).to(self.dtype)

    def _attend(
        self, heads: Float[Tensor, "B all D"], *, kept: Float[Tensor, "2 B kv T D"], hidden: Float[Tensor, "B 1 T"]
    ) -> Tensor:
        """Keys and values go in at once, scale and mask on at once: each operation is a kernel a layer and token."""
        decoder, heads, rows = self.decoder, heads.to(self.dtype), len(heads)
        new = heads[:, decoder.heads :].view(rows, 2, decoder.kv_heads, 1, decoder.head_size).transpose(0, 1)
        kept.index_copy_(3, self.column, new)
        keys, values = kept.flatten(1, 2)
        query = heads[:, : decoder.heads].reshape(rows * decoder.kv_heads, -1, decoder.head_size)
        scores = in_float32(torch.bmm, query, keys.transpose(1, 2)).view(rows, decoder.heads, -1)
        seen = torch.add(hidden, scores, alpha=decoder.scale).softmax(-1).to(self.dtype)
        return torch.bmm(seen.view(query.shape[0], -1, seen.shape[-1]), values).view(rows, -1)

    def _read(self, model: Any) -> None:
        """The weights as they are now."""
        weights, decoder = named_weights(model), self.decoder
        pairs = [(self.norm, norm_weight(last_norm(weights, decoder), decoder))]
        pairs.append((self.head, model.get_output_embeddings().weight))
        for mine, its in zip(self.layers, layer_weights(weights, decoder), strict=True):
            pairs += pairs_of(mine, its, decoder)
        copy_together(pairs)

    def _first(self) -> None:
        """Back to where a rollout begins, with nothing left of the last: 0 times what is not a number is none."""
        for moving in (self.at, self.column, self.positions, self.seen, *self.kept):
            moving.zero_()

    def _capture(self, rows: int) -> Callable[[], None]:
        """The step of so many rows as a graph. Raises RunFailed where this GPU or driver captures none."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(before)
            with torch.cuda.stream(aside):  # libraries choose their kernels and take their memory before the capture
                for _ in range(2):
                    self._token(rows)
                    self._first()
            before.wait_stream(aside)
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=aside, capture_error_mode="thread_local"):
                    self._token(rows)
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # a capture that breaks off stays on its own stream
                if out_of_memory(error):
                    raise
                raise RunFailed(
                    f"this GPU does not capture the decoding step as a CUDA graph: {_cause(error)}\n"
                    "  Go on without, slower: rollout.cuda_graphs=false"
                ) from error
        self.pool = graph.pool()
        return graph.replay

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _cause(error: BaseException) -> str:
    """What a capture broke off at. The error that leaves it only says that it is broken; the first one is behind it."""
    while error.__context__ is not None:
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line})" if frames else ""
    return f"{error}{where}"


def _plainly(device: torch.device) -> torch.autocast:
    """Every operation in the dtype that is written here."""
    return torch.autocast(device.type, enabled=False)


def _memory(like: Block) -> Block:
    """Memory for such weights, that stays where it is. [in, out] as a view of [out, in] stays that."""
    memory: dict[str, Any] = {f.name: _empty(getattr(like, f.name)) for f in fields(Block)}
    return replace(like, **memory)


def _empty(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.empty_like(like)
