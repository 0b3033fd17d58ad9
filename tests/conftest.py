"""Shapes in `rl/`'s signatures are checked while the tests run; nothing reaches for a network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for one another

import torch
from jaxtyping import install_import_hook

install_import_hook(("rlhf_cli.rl", "rlhf_cli.engine"), "beartype.beartype")
torch.set_num_threads(1)

TINY = {
    "reviews": 900,
    "held_out": 40,
    "base_steps": 12,
    "instruct_steps": 6,
    "classifier_steps": 12,
    "batch": 8,
    "width": 64,
}


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all the tests' processes: what one has built the others find."""
    mine = tmp_path_factory.getbasetemp()
    return (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "miniatures"


@pytest.fixture(scope="module")
def cache(miniatures: Path):
    """Miniatures of this module are tiny, and kept in the cache whose path this is."""
    from rlhf_cli.miniatures import build

    tiny = build.Recipe(**TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Recipe", lambda: tiny)
        patch.setenv("RLHF_CACHE", str(miniatures))
        yield miniatures
