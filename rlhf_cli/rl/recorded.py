"""One more token for every row, on a GPU: a step that is recorded once, as a CUDA graph, and played back.

Launched one by one from Python, the hundreds of kernels of a token take many times as long as they run; played back
they are one launch. So nothing in a step waits for the host or changes its shape: what differs from token to token lies
in memory that the step itself moves on, and a row that is done goes on drawing tokens that nobody reads (few rows cost
what the weights cost to read, and half of them no less). On the CPU, for tests, it runs operation by operation.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding, rms_norm, silu

from rlhf_cli.config.errors import RunFailed
from rlhf_cli.internals.torch_private import copy_all
from rlhf_cli.models.memory import at_shortage, out_of_memory
from rlhf_cli.rl.decode import angles, plain, turn_
from rlhf_cli.rl.products import in_float32

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

COLUMNS = 64
"""Places in the cache come in so many, that a prompt a little longer than the last needs no new recording."""
LOOK = 8
"""Tokens between two looks at whether every row is done: a look waits for the GPU."""

_kept: "WeakKeyDictionary[Any, Recorded]" = WeakKeyDictionary()
at_shortage(_kept.clear)


def records(trunk: Any) -> bool:
    """Whether `Recorded` knows this model here."""
    return trunk.embed_tokens.weight.device.type == "cuda" and plain(trunk)


def recorded(model: Any, draw: Draw, *, rows: int, columns: int, length: int) -> "Recorded":
    """The model's recording, which is kept; made anew if it is too small."""
    head, table = model.get_output_embeddings().weight, model.get_decoder().embed_tokens.weight
    autocast = torch.is_autocast_enabled(head.device.type)
    dtype = torch.get_autocast_dtype(head.device.type) if autocast else head.dtype
    columns = -(-columns // COLUMNS) * COLUMNS
    held = _kept.pop(model, None)  # if there is no memory for a larger one, this one is gone when fewer rows are tried
    if held is None or (held.dtype, held.device, held.read_at) != (dtype, head.device, table.data_ptr()):
        held = Recorded(model, draw, rows=rows, columns=columns, length=length, dtype=dtype)
    elif held.rows < rows or held.columns < columns or held.length < length:
        most = {"rows": max(held.rows, rows), "columns": max(held.columns, columns), "length": max(held.length, length)}
        del held
        held = Recorded(model, draw, **most, dtype=dtype)
    _kept[model] = held
    return held


class Layer:
    """One layer's weights: those of one input in one product, in memory that stays where it is."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        self.qkv, self.bias, self.out, self.up, self.down, self.norms = (
            torch.empty_like(torch.cat([*w]) if isinstance(w, tuple) else w, dtype=dtype) for w in _weights(layer)
        )
        self.norms = self.norms.float()

    def places(self, layer: Any) -> list[tuple[Tensor, Tensor]]:
        """(where a weight of the model's layer goes, the weight)."""
        found: list[tuple[Tensor, Tensor]] = []
        mine = (self.qkv, self.bias, self.out, self.up, self.down, self.norms)
        for place, parts in zip(mine, _weights(layer), strict=True):
            several = parts if isinstance(parts, tuple) else (parts,)
            found += zip(place.split([len(part) for part in several]), several, strict=True)
        return found


def _weights(layer: Any) -> tuple[Tensor | tuple[Tensor, ...], ...]:
    inner, mlp = layer.self_attn, layer.mlp
    projections = (inner.q_proj, inner.k_proj, inner.v_proj)
    return (
        tuple(p.weight for p in projections),
        tuple(p.bias for p in projections),
        inner.o_proj.weight,
        (mlp.gate_proj.weight, mlp.up_proj.weight),
        mlp.down_proj.weight,
        (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
    )


class Recorded:
    """A decoding step for at most `rows` rows, `columns` tokens with their prompts and responses of `length`, and the
    memory that it works in. `dtype`: of weights, keys, values and what is multiplied with them; else float32."""

    def __init__(self, model: Any, draw: Draw, *, rows: int, columns: int, length: int, dtype: torch.dtype) -> None:
        trunk, head = model.get_decoder(), model.get_output_embeddings().weight
        config, inner = trunk.config, trunk.layers[0].self_attn
        self.rows, self.columns, self.length = rows, columns, length
        self.draw, self.dtype, self.device = draw, dtype, head.device
        self.epsilon, self.size, self.groups = config.rms_norm_eps, inner.head_dim, inner.num_key_value_groups
        self.kv_heads = config.num_key_value_heads
        self.heads = self.kv_heads * self.groups
        self.table = trunk.embed_tokens.weight
        self.read_at = self.table.data_ptr()
        with torch.inference_mode(False), torch.no_grad(), _plainly(self.device):
            self.layers = [Layer(layer, dtype) for layer in trunk.layers]
            self.norm, self.head = torch.empty_like(trunk.norm.weight).float(), torch.empty_like(head, dtype=dtype)
            # queries come scaled: attention needs no pass of its own for that
            scales = torch.ones(self.heads + self.kv_heads, 1, device=self.device)
            scales[: self.heads] = inner.scaling
            self.cos, self.sin = (table * scales for table in angles(trunk, columns))
            shape = (len(trunk.layers), rows, self.kv_heads, columns, self.size)
            self.keys, self.values = (self._zeros(*shape, dtype=dtype) for _ in range(2))
            self.states = self._zeros(rows, config.hidden_size, dtype=dtype)
            self.temperature = torch.ones((), device=self.device)
            self.ends = self._zeros(len(head), dtype=torch.bool)
            self.uniforms = self._zeros(rows, length, dtype=torch.float64)
            self.positions, self.at, self.column = (self._zeros(n, dtype=torch.long) for n in (rows, 1, 1))
            self.seen = self._zeros(rows, columns, dtype=torch.bool)
            self.done = self._zeros(rows, dtype=torch.bool)
            self.responses = self._zeros(rows, length, dtype=torch.long)
            self.logprobs = self._zeros(rows, length)
            self.play = self._record() if self.device.type == "cuda" else self._token

    def rollout(
        self,
        model: Any,
        prefilled: Any,
        states: Float[Tensor, "B H"],
        *,
        positions: Int[Tensor, " B"],
        real: Bool[Tensor, "B P"],
        uniforms: Float[Tensor, "B R"],
        ends: Bool[Tensor, " V"],
        temperature: float,
    ) -> tuple[Int[Tensor, "B R"], Float[Tensor, "B R"]]:
        """Responses and log-probs, of which only what is before the first end counts.

        `prefilled`: the cache with the prompts of each row; `states`: the last hidden states of these; `positions`:
        of the next token; `real`: where a prompt has tokens; `ends`: which tokens end a response.
        """
        (count, length), width = uniforms.shape, real.shape[1]
        self._first()
        self._read(model)
        for i, layer in enumerate(prefilled.stores):
            self.keys[i, :count, :, :width].copy_(layer.keys)
            self.values[i, :count, :, :width].copy_(layer.values)
        self.states[:count].copy_(states)
        self.temperature.fill_(temperature)
        self.ends.copy_(ends)
        self.uniforms[:count, :length].copy_(uniforms)
        self.positions[:count].copy_(positions)
        self.column.fill_(width)
        self.seen[:count, :width].copy_(real)
        self.done.fill_(True)[:count].fill_(False)
        with _plainly(self.device):
            for token in range(1, length + 1):
                self.play()
                if token % LOOK == 0 and bool(self.done.all()):
                    break
        return self.responses[:count, :length].clone(), self.logprobs[:count, :length].clone()

    def _token(self) -> None:
        """Draw each row's next token, and read it."""
        logits = in_float32(torch.mm, self.states, self.head.T).div_(self.temperature)
        token, logprob = self.draw(logits, self.uniforms.index_select(1, self.at).squeeze(1))
        self.responses.index_copy_(1, self.at, token[:, None])
        self.logprobs.index_copy_(1, self.at, logprob[:, None])
        self.done |= self.ends[token]
        self.seen.index_fill_(1, self.column, True)
        self.states.copy_(self._states(token))
        for moving in (self.at, self.column, self.positions):
            moving += 1

    def _states(self, token: Int[Tensor, " B"]) -> Float[Tensor, "B H"]:
        x = embedding(token, self.table).float()
        cos, sin, hidden = self.cos[self.positions], self.sin[self.positions], ~self.seen[:, None]
        both = self.heads + self.kv_heads
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            first, second = layer.norms.chunk(2)
            qkv = torch.addmm(layer.bias, self._normed(x, first), layer.qkv.T).view(self.rows, -1, self.size)
            turn = turn_(qkv[:, :both].float(), cos, sin).to(self.dtype)
            keys.index_copy_(2, self.column, turn[:, self.heads :, None])
            values.index_copy_(2, self.column, qkv[:, both:, None])
            query = turn[:, : self.heads].reshape(self.rows * self.kv_heads, self.groups, self.size)
            scores = in_float32(torch.bmm, query, keys.flatten(0, 1).transpose(1, 2))
            scores.view(self.rows, self.heads, -1).masked_fill_(hidden, -torch.inf)
            out = torch.bmm(scores.softmax(-1).to(self.dtype), values.flatten(0, 1))
            x = x + in_float32(torch.mm, out.view(self.rows, -1), layer.out.T)
            gate, up = torch.mm(self._normed(x, second), layer.up.T).chunk(2, 1)
            x = x + in_float32(torch.mm, silu(gate) * up, layer.down.T)
        return self._normed(x, self.norm)

    def _normed(self, x: Float[Tensor, "B H"], weight: Float[Tensor, " H"]) -> Float[Tensor, "B H"]:
        return rms_norm(x, x.shape[1:], weight, self.epsilon).to(self.dtype)

    def _read(self, model: Any) -> None:
        """The weights as they are now."""
        trunk = model.get_decoder()
        pairs = [(self.norm, trunk.norm.weight), (self.head, model.get_output_embeddings().weight)]
        for mine, its in zip(self.layers, trunk.layers, strict=True):
            pairs += mine.places(its)
        copy_all([place for place, _ in pairs], [weight.detach() for _, weight in pairs])

    def _first(self) -> None:
        """Back to where a rollout begins, with nothing left of the last: 0 times what is not a number is none."""
        for moving in (self.at, self.column, self.positions, self.seen, self.values):
            moving.zero_()

    def _record(self) -> Callable[[], None]:
        """The step as a graph. Raises RunFailed where this GPU or driver records none."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(before)
            with torch.cuda.stream(aside):  # libraries choose their kernels and take their memory before the recording
                for _ in range(2):
                    self._token()
                    self._first()
            before.wait_stream(aside)
            try:
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    self._token()
            except RuntimeError as error:
                torch.cuda.set_stream(before)  # a recording that breaks off stays on its own
                if out_of_memory(error):
                    raise
                raise RunFailed(
                    f"this GPU does not record the decoding step as a CUDA graph: {error}\n"
                    "  Go on without, slower: rollout.cuda_graphs=false"
                ) from error
        return graph.replay

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _plainly(device: torch.device) -> torch.autocast:
    """Every operation in the dtype that is written here."""
    return torch.autocast(device.type, enabled=False)
