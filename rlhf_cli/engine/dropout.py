"""Dropout off in every mode: what is sampled and what is learned from must be the same policy.

Families keep it in modules, in attributes that they hand to functions, and in the config that they read while running;
gradient checkpointing wants train mode, so eval mode alone is no way out.
"""

from typing import Any

import torch
from torch import nn

from rlhf_cli.engine import gate, plain

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
WORDS = ("drop", "jitter")
"""In the names of attributes that make train mode random: dropout, attn_pdrop, layerdrop, router_jitter_noise."""
EVALUATES = "rlhf_learns_in_eval_mode"


def without_dropout(model: Any) -> Any:
    """The model, in eval mode, with dropout off in train mode too."""
    for module in model.modules():
        if isinstance(module, KINDS):
            module.p = 0.0
        _zero(module)
    model.eval()
    model.__dict__.pop(EVALUATES, None)
    if not _is_deterministic(model):
        _zero(model.config)
        model.__dict__[EVALUATES] = not _is_deterministic(model)
    return model


def _zero(thing: Any) -> None:
    for name, value in list(vars(thing).items()):
        if isinstance(value, float) and any(word in name for word in WORDS):
            setattr(thing, name, 0.0)


@torch.no_grad()
def _is_deterministic(model: Any) -> bool:
    """Whether two passes in train mode, and one in eval mode, give the same."""
    parameter = next(model.parameters())
    if parameter.is_meta:
        return True
    count = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(count, (2, 6), generator=torch.Generator().manual_seed(0)).to(parameter.device)
    told = []
    with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []):
        torch.manual_seed(0)
        for training in (True, True, False):
            model.train(training)
            told.append(plain.outputs(model, ids))
    model.eval()
    if not all(bool(x.isfinite().all()) for x in told):
        return True  # NaN compares with nothing; the run will say where it is
    limit = gate.TOLERANCE.get(parameter.dtype, gate.LOW_TOLERANCE)
    return max(gate.compare(told[i], told[2]) for i in (0, 1)) <= limit


def train_mode(model: Any, on: bool = True) -> None:
    """Train mode, but for a model whose dropout could not be switched off: it learns in eval mode."""
    model.train(on and not learns_in_eval_mode(model))


def learns_in_eval_mode(model: Any) -> bool:
    """`model`: a language model, its trunk, or a critic on one."""
    return any(getattr(part, EVALUATES, False) for part in (model, getattr(model, "base_model", model)))
