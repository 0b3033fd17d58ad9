"""What rlhf uses of W&B beyond its documented interface. Tested with the versions in pyproject.toml.

- The settings of this process before a run: where the server is and whether a key is known.
- The base class of W&B's errors.
"""

from typing import Any

import wandb
from wandb.errors import Error

__all__ = ["Error", "settings"]


def settings() -> Any:
    """With `base_url`, `api_key` and `identity_token_file`."""
    return wandb.setup().settings
