"""Keys and values of the tokens so far, in memory that is laid out once; rows that are done give up their place."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.internals.transformers_private import Cache, DynamicLayer


class RowCache(Cache):
    """For `len(owner)` rows and at most `columns` tokens; `owner` names the prefilled prompt of each row."""

    def __init__(self, layers: int, owner: Int[Tensor, " B"], columns: int) -> None:
        self.stores = [Layer(owner, columns) for _ in range(layers)]
        super().__init__(layers=[*self.stores])
        self.columns = columns

    def keep(self, movers: Tensor, holes: Tensor, rows: int) -> None:
        """Rows `movers` move into `holes`; then only the first `rows` are left."""
        for layer in self.stores:
            filled = layer.store[:, :, :, : layer.filled]
            filled[:, holes] = filled[:, movers]
            layer.rows = rows


class Layer(DynamicLayer):
    """One layer's part; nothing is concatenated or copied as it grows. It knows nothing of the cache: a circle would
    keep the memory until Python looks for circles."""

    store: Float[Tensor, "2 B heads T D"]
    """Keys and values."""

    def __init__(self, owner: Int[Tensor, " B"], columns: int) -> None:
        super().__init__()
        self.owner, self.columns, self.rows, self.filled = owner, columns, len(owner), 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; returns all there is. The first call's rows are the prompts, each perhaps of many rows."""
        first = not self.filled
        if first:
            heads, size = key_states.shape[1], key_states.shape[3]
            self.store = key_states.new_empty((2, self.rows, heads, self.columns, size))
            self.is_initialized = True
        self.keys, self.values = self._grown(key_states.shape[2])
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored[:, :, -new.shape[2] :] = new[self.owner] if first else new
        return (key_states, value_states) if first else (self.keys, self.values)

    def add(self, both: Float[Tensor, "B 2 heads D"]) -> tuple[Tensor, Tensor]:
        """The same for one more token of each row."""
        self.keys, self.values = grown = self._grown(1)
        grown[:, :, :, -1] = both.transpose(0, 1)
        return self.keys, self.values

    def _grown(self, more: int) -> Float[Tensor, "2 B heads t D"]:
        self.filled += more
        return self.store[:, : self.rows, :, : self.filled]


def survivors(going: Tensor) -> tuple[Tensor, Tensor, int]:
    """(movers, holes, rows): the last rows that go on fill the places of those that are done. `going`: bool [rows]."""
    rows = int(going.sum())
    return going[rows:].nonzero().squeeze(1) + rows, (~going[:rows]).nonzero().squeeze(1), rows
