"""What rlhf uses of transformers beyond its documented interface. Tested with the versions in pyproject.toml.

- How decoder layers and trunks name their KV cache: `cache` since 5.24, `past_key_values` before.
- The layer and norm classes of Qwen2, which `rl/quick.py` derives from, and their attributes.
- The attention function that SDPA models call, and which attention a config was loaded with.
- The base class of one layer's KV cache.
"""

import inspect
from functools import cache
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = [
    "LAYER_ARGUMENTS", "Cache", "DynamicLayer", "attention_name", "cache_argument", "qwen2_classes",
    "sdpa_attention_forward", "sdpa_mask",
]  # fmt: skip

LAYER_ARGUMENTS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings", "use_cache")
"""What a Qwen2 decoder layer takes, beside its cache."""


def qwen2_classes() -> tuple[type, type]:
    """(decoder layer, RMS norm)."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

    return Qwen2DecoderLayer, Qwen2RMSNorm


@cache
def cache_argument(kind: type) -> str:
    """The name under which a module class's `forward` takes the KV cache. Raises TypeError where it takes none."""
    names = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    found = [name for name in ("cache", "past_key_values") if name in names]
    if not found:
        import transformers

        raise TypeError(
            f"{kind.__name__}.forward of transformers {transformers.__version__} takes no KV cache under a name that "
            f"rlhf knows (cache, past_key_values); it takes: {', '.join(names)}"
        )
    return found[0]


def attention_name(config: Any) -> str:
    """The attention that a model was loaded with (`attn_implementation=`)."""
    return str(config._attn_implementation)
