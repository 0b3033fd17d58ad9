"""Running mean and deviation of several rewards, each by itself."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class RunningMoments:
    """Of every number seen so far, by name (Chan et al. 1979's merge of a batch into what is known; float64).

    A batch must be that of all processes: then every process knows the same.
    """

    def __init__(self) -> None:
        self.count: dict[str, float] = {}
        self.mean: dict[str, float] = {}
        self.squares: dict[str, float] = {}
        """Σ (x − mean)²."""

    def update(self, name: str, values: Float[Tensor, " B"]) -> None:
        values = values.double()
        new, mean = len(values), float(values.mean())
        count, before = self.count.get(name, 0.0), self.mean.get(name, 0.0)
        far, total = mean - before, count + new
        self.count[name] = total
        self.mean[name] = before + far * new / total
        among = float((values - mean).square().sum()) + far * far * count * new / total
        self.squares[name] = self.squares.get(name, 0.0) + among

    def normalised(self, name: str, values: Float[Tensor, " B"], eps: float = 1e-6) -> Float[Tensor, " B"]:
        """(x − mean) / (std + eps) by what was seen of it (ddof 1); exactly 0 where it never varied."""
        squares = self.squares[name]
        if squares == 0:
            return torch.zeros_like(values)
        std = math.sqrt(squares / (self.count[name] - 1))
        return ((values.double() - self.mean[name]) / (std + eps)).to(values.dtype)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"count": dict(self.count), "mean": dict(self.mean), "squares": dict(self.squares)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        self.count, self.mean, self.squares = (dict(state[part]) for part in ("count", "mean", "squares"))
