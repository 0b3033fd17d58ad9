"""Keys and values of the tokens so far, in memory that is laid out once; rows that are done give up their place."""

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Layer(DynamicLayer):
    """One layer's keys and values [rows, heads, columns, D]; nothing is concatenated or copied as they grow."""

    def __init__(self, owner: Int[Tensor, " B"], columns: int) -> None:
        super().__init__()
        self.owner, self.columns = owner, columns
        """owner: which of the prefilled prompts each row begins with."""
        self.rows, self.filled = len(owner), 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; returns all there is. The first call's rows are the prompts, each perhaps of many rows."""
        first, new = self.filled, key_states.shape[2]
        self.filled += new
        if not first:
            shape = (self.rows, key_states.shape[1], self.columns, key_states.shape[3])
            self.all_keys, self.all_values = key_states.new_empty(shape), value_states.new_empty(shape)
            self.all_keys[:, :, :new] = key_states[self.owner]
            self.all_values[:, :, :new] = value_states[self.owner]
            self._show()
            return key_states, value_states
        self.all_keys[: self.rows, :, first : self.filled] = key_states
        self.all_values[: self.rows, :, first : self.filled] = value_states
        return self._show()

    def keep(self, movers: Tensor, holes: Tensor, rows: int) -> None:
        """Rows `movers` move into `holes`; then only the first `rows` are left."""
        for stored in (self.all_keys, self.all_values):
            stored[holes, :, : self.filled] = stored[movers, :, : self.filled]
        self.rows = rows
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys = self.all_keys[: self.rows, :, : self.filled]
        self.values = self.all_values[: self.rows, :, : self.filled]
        self.is_initialized = True
        return self.keys, self.values


def make_cache(layers: int, owner: Int[Tensor, " B"], columns: int) -> Cache:
    """For `len(owner)` rows and at most `columns` tokens; `owner` names the prefilled prompt of each row."""
    return Cache(layers=[Layer(owner, columns) for _ in range(layers)])


def keep(cache: Any, movers: Tensor, holes: Tensor, rows: int) -> None:
    for layer in cache.layers:
        layer.keep(movers, holes, rows)


def survivors(going: Tensor) -> tuple[Tensor, Tensor, int]:
    """(movers, holes, rows): the last rows that go on fill the places of those that are done. `going`: bool [rows]."""
    rows = int(going.sum())
    return going[rows:].nonzero().squeeze(1) + rows, (~going[:rows]).nonzero().squeeze(1), rows
