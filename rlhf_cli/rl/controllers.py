"""How beta, the weight of the KL to the reference, goes on from step to step."""

from dataclasses import dataclass
from typing import Any


@dataclass
class FixedKL:
    value: float

    def update(self, kl: float, n: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])


@dataclass
class AdaptiveKL(FixedKL):
    """Proportional control in log space (Ziegler et al. 2019, section 2.2): error clipped to ±0.2.

    `kl` is the sequence KL in nats, `n` the rollouts it was measured on, `horizon` in rollouts.
    """

    target: float
    horizon: int

    def update(self, kl: float, n: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n / self.horizon
