"""AdamW whose two moments are kept in 8 bits (Dettmers et al. 2022), by bitsandbytes (an extra: `rlhf[8bit]`)."""

import logging
from importlib.util import find_spec
from typing import Any

from rlhf_cli.config.errors import UserError


def check_8bit() -> None:
    """Raises UserError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            'optim.name=adamw_8bit: bitsandbytes is not installed here. pip install "rlhf[8bit]", or optim.name=adamw'
        )


def adamw_8bit(groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> Any:
    """The optimizer. Parameters of less than 4096 numbers keep float32 moments, as bitsandbytes has it. Raises
    UserError where that is not installed."""
    check_8bit()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of parts for 4-bit models, not used here
    from bitsandbytes.optim import AdamW8bit

    class RoomFirst(AdamW8bit):
        """Makes all of its moments before any weight changes, as torch's AdamW does: a first step that ran out of
        memory can start over."""

        def step(self, closure: Any = None) -> Any:
            for at, group in enumerate(self.param_groups):
                for index, p in enumerate(group["params"]):
                    if p.grad is not None and not self.state[p]:
                        self.init_state(group, p, at, index)
            return super().step(closure)

    return RoomFirst(groups, lr=lr, weight_decay=weight_decay)
