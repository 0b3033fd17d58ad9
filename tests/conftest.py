"""Shapes in `rl/`'s signatures are checked while the tests run; nothing reaches for a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import torch
from jaxtyping import install_import_hook

install_import_hook("rlhf_cli.rl", "beartype.beartype")
torch.set_num_threads(1)  # tiny models: more threads only wait for one another
