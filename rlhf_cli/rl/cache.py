"""Keys and values of the tokens so far, in memory that is laid out once; rows that are done give up their place."""

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RowCache(Cache):
    """For `len(owner)` rows and at most `columns` tokens; `owner` names the prefilled prompt of each row."""

    def __init__(self, layers: int, owner: Int[Tensor, " B"], columns: int) -> None:
        self.stores = [Layer(self) for _ in range(layers)]
        super().__init__(layers=[*self.stores])
        self.owner, self.columns, self.rows = owner, columns, len(owner)

    def keep(self, movers: Tensor, holes: Tensor, rows: int) -> None:
        """Rows `movers` move into `holes`; then only the first `rows` are left."""
        for layer in self.stores:
            for stored in layer.stored:
                stored[holes, :, : layer.filled] = stored[movers, :, : layer.filled]
        self.rows = rows


class Layer(DynamicLayer):
    """One layer's part; nothing is concatenated or copied as it grows."""

    stored: tuple[Tensor, Tensor]
    """Keys and values: [rows, heads, columns, D]."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache, self.filled = cache, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; returns all there is. The first call's rows are the prompts, each perhaps of many rows."""
        start, rows = self.filled, self.cache.rows
        if not start:
            shape = (rows, key_states.shape[1], self.cache.columns, key_states.shape[3])
            self.stored = key_states.new_empty(shape), value_states.new_empty(shape)
            self.is_initialized = True
        self.filled += key_states.shape[2]
        self.keys, self.values = (x[:rows, :, : self.filled] for x in self.stored)
        if not start:
            self.keys.copy_(key_states[self.cache.owner])
            self.values.copy_(value_states[self.cache.owner])
            return key_states, value_states
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values


def survivors(going: Tensor) -> tuple[Tensor, Tensor, int]:
    """(movers, holes, rows): the last rows that go on fill the places of those that are done. `going`: bool [rows]."""
    rows = int(going.sum())
    return going[rows:].nonzero().squeeze(1) + rows, (~going[:rows]).nonzero().squeeze(1), rows
