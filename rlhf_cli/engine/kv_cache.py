"""Keys and values of the tokens so far, in memory that is laid out once; rows that are done give up their place."""

from jaxtyping import Float, Int
from torch import Tensor


class KVCache:
    """For `len(owner)` rows and at most `columns` tokens; `owner` names the prefilled prompt of each row."""

    def __init__(self, layers: int, owner: Int[Tensor, " B"], columns: int) -> None:
        self.layers = [LayerCache(owner, columns) for _ in range(layers)]
        self.columns = columns

    def keep(self, movers: Tensor, holes: Tensor, rows: int) -> None:
        """Rows `movers` move into `holes`; then only the first `rows` are left."""
        for layer in self.layers:
            filled = layer.store[:, :, :, : layer.filled]
            filled[:, holes] = filled[:, movers]
            layer.rows = rows


class LayerCache:
    """One layer's part; nothing is concatenated or copied as it grows."""

    store: Float[Tensor, "2 B heads T D"]
    """Keys and values."""

    def __init__(self, owner: Int[Tensor, " B"], columns: int) -> None:
        self.owner, self.columns, self.rows, self.filled = owner, columns, len(owner), 0

    def prefill(self, both: Float[Tensor, "2 U heads P D"]) -> None:
        """The prompts' keys and values, each for all rows that it owns."""
        _, _, heads, width, size = both.shape
        self.store = both.new_empty((2, self.rows, heads, self.columns, size))
        self._grown(width).copy_(both[:, self.owner])

    def add(self, both: Float[Tensor, "B 2 heads D"]) -> Float[Tensor, "2 B heads t D"]:
        """Store one more token of each row; returns all keys and values."""
        grown = self._grown(1)
        grown[:, :, :, -1] = both.transpose(0, 1)
        return grown

    def read(self) -> Float[Tensor, "2 B heads t D"]:
        return self._grown(0)

    def _grown(self, more: int) -> Float[Tensor, "2 B heads t D"]:
        self.filled += more
        return self.store[:, : self.rows, :, : self.filled]


def survivors(going: Tensor) -> tuple[Tensor, Tensor, int]:
    """(movers, holes, rows): the last rows that go on fill the places of those that are done. `going`: bool [rows]."""
    rows = int(going.sum())
    return going[rows:].nonzero().squeeze(1) + rows, (~going[:rows]).nonzero().squeeze(1), rows
