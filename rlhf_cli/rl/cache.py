"""Keys and values of the tokens so far, in memory that is laid out once; rows that are done give up their place."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RowCache(Cache):
    """For `len(owner)` rows and at most `columns` tokens; `owner` names the prefilled prompt of each row."""

    store: Float[Tensor, "layers 2 B heads T D"]
    """Keys and values."""

    def __init__(self, layers: int, owner: Int[Tensor, " B"], columns: int) -> None:
        self.stores = [Layer(self, i) for i in range(layers)]
        super().__init__(layers=[*self.stores])
        self.owner, self.columns, self.rows = owner, columns, len(owner)

    def lay_out(self, like: Float[Tensor, "U heads P D"]) -> None:
        _, heads, _, size = like.shape
        self.store = like.new_empty((len(self.stores), 2, self.rows, heads, self.columns, size))

    def keep(self, movers: Tensor, holes: Tensor, rows: int) -> None:
        """Rows `movers` move into `holes`; then only the first `rows` are left."""
        filled = self.store[:, :, :, :, : self.stores[0].filled]
        filled[:, :, holes] = filled[:, :, movers]
        self.rows = rows


class Layer(DynamicLayer):
    """One layer's part; nothing is concatenated or copied as it grows."""

    def __init__(self, cache: RowCache, index: int) -> None:
        super().__init__()
        self.cache, self.index, self.filled = cache, index, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; returns all there is. The first call's rows are the prompts, each perhaps of many rows."""
        first, owner = not self.filled, self.cache.owner
        if first:
            if self.index == 0:
                self.cache.lay_out(key_states)
            self.is_initialized = True
        self.keys, self.values = self._grown(key_states.shape[2])
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored[:, :, -new.shape[2] :] = new[owner] if first else new
        return (key_states, value_states) if first else (self.keys, self.values)

    def add(self, both: Float[Tensor, "B 2 heads D"]) -> tuple[Tensor, Tensor]:
        """The same for one more token of each row."""
        self.keys, self.values = grown = self._grown(1)
        grown[:, :, :, -1] = both.transpose(0, 1)
        return self.keys, self.values

    def _grown(self, more: int) -> Float[Tensor, "2 B heads t D"]:
        self.filled += more
        return self.cache.store[self.index, :, : self.cache.rows, :, : self.filled]


def survivors(going: Tensor) -> tuple[Tensor, Tensor, int]:
    """(movers, holes, rows): the last rows that go on fill the places of those that are done. `going`: bool [rows]."""
    rows = int(going.sum())
    return going[rows:].nonzero().squeeze(1) + rows, (~going[:rows]).nonzero().squeeze(1), rows
