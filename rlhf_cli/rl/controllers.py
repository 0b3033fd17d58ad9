"""How a KL penalty's weight goes on from step to step."""

from dataclasses import dataclass
from typing import Any


@dataclass
class FixedKL:
    """The weight stays what it is."""

    value: float

    def update(self, kl: float, n: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])


FACTORS = (0.5, 2.0)
"""The most that one step moves a weight by: PPO's own rule (Schulman et al. 2017, sec. 4). So it keeps its sign."""

WEIGHTS = (1e-8, 1e8)
"""Where an adapted weight ends: at 0 or infinity no factor would bring it back."""


def _moved(value: float, factor: float) -> float:
    low, high = FACTORS
    value *= min(max(factor, low), high)
    return min(max(value, WEIGHTS[0]), WEIGHTS[1])


@dataclass
class AdaptiveKL(FixedKL):
    """Proportional control in log space (Ziegler et al. 2019, sec. 2.2): beta follows a target KL.

    `target` is a sequence KL in nats; `horizon` counts rollouts: how many it takes to correct an error of 1.
    """

    target: float
    horizon: int

    def update(self, kl: float, n: int) -> None:
        """`kl` was measured over `n` rollouts. The error is clipped to ±0.2, so one wild batch cannot run away.

        The paper's factor 1 + error · n/horizon is negative where n > 5 · horizon: it is bounded by FACTORS.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value = _moved(self.value, 1 + error * n / self.horizon)


@dataclass
class DoublingKL(FixedKL):
    """beta_old is halved where KL(π_old ‖ π) stays under target/1.5 and doubled above 1.5·target (PPO, sec. 4)."""

    target: float

    def update(self, kl: float, n: int) -> None:
        """`kl`: nats a token."""
        if kl < self.target / 1.5:
            self.value = _moved(self.value, 0.5)
        elif kl > self.target * 1.5:
            self.value = _moved(self.value, 2.0)
