"""What the fast way knows of a decoder: one frozen record made from the public config, and the weights by their names.

A Llama-like decoder, with what its relatives add: biases, norms of queries and keys, norm weights around zero, other
activations, multipliers, layers without rotary embedding. Kinds are listed by hand: what a config does not say (a
sliding window under a new name, attention that changes with position) would pass a gate of a few tokens.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_cli.engine.lora import summed_weights

KINDS = ("qwen2", "qwen3", "llama", "mistral", "smollm3", "gemma", "granite")
"""`model_type`s that are described here."""
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotary embedding: an angle per pair of numbers and position, and what cosines and sines are scaled by."""

    kind: str
    """default | linear | llama3 | yarn."""
    theta: float
    size: int
    """Numbers of a head."""
    options: tuple[tuple[str, Any], ...]

    def frequencies(self) -> tuple[Float[Tensor, " half"], float]:
        """(radians per position, the scale). In float32, as transformers computes them."""
        given = dict(self.options)
        plain = 1.0 / (self.theta ** (torch.arange(0, self.size, 2, dtype=torch.float) / self.size))
        match self.kind:
            case "linear":
                return plain / given["factor"], 1.0
            case "llama3":
                return _llama3(plain, given), 1.0
            case "yarn":
                return _yarn(self.theta, self.size, given)
            case _:
                return plain, 1.0


def _llama3(plain: Tensor, given: dict[str, Any]) -> Tensor:
    """Llama 3.1's: long waves are slowed down by `factor`, short ones stay, those between are mixed."""
    factor, context = given["factor"], given["original_max_position_embeddings"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    waves = 2 * math.pi / plain
    share = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / factor + share * plain


def _yarn(theta: float, size: int, given: dict[str, Any]) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023), sections 3.2 and 3.4."""
    factor, context = given["factor"], given["original_max_position_embeddings"]
    scale = given.get("attention_factor")
    if scale is None:
        scale = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0

    def dimension(rotations: float) -> float:
        return size * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(given.get("beta_fast") or 32)), dimension(float(given.get("beta_slow") or 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = ((torch.arange(size // 2, dtype=torch.float) - low) / max(high - low, 0.001)).clamp(0, 1)
    waves = theta ** (torch.arange(0, size, 2, dtype=torch.float) / size)
    return ramp / (factor * waves) + (1 - ramp) / waves, scale


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes and constants of a decoder that the fast way covers."""

    prefix: str
    """Of the weights' names: "model." in a causal LM, "" in a trunk alone."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    epsilon: float
    norm_offset: float
    """1 where norms multiply by 1 + weight."""
    activation: str
    """silu | gelu | gelu_tanh."""
    rotary: Rotary
    rotates: tuple[bool, ...]
    """Whether a layer turns its queries and keys."""
    scale: float
    """Of attention scores."""
    embedding_scale: float
    residual_scale: float
    """Of what a layer's halves add to the stream."""
    logit_scale: float
    window: int | None
    """Tokens that a sliding window sees, or after which angles change: the fast way is for contexts that fit in it."""

    def angles(self, positions: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 1 D"], Float[Tensor, "N 1 D"]]:
        """Cosines and sines for `layer.turn`, in float32; the sine has a minus where the other half is taken away."""
        frequencies, scale = self.rotary.frequencies()
        angle = positions[:, None].float() * frequencies.to(positions.device)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        return torch.cat([cos, cos], 1)[:, None], torch.cat([-sin, sin], 1)[:, None]


Linear = tuple[Tensor, Tensor | None]
"""Weight [out, in] and bias."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights, as the model holds them."""

    attention_norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Names in a checkpoint, after `model.layers.{i}.`."""


def named_weights(model: Any) -> dict[str, Tensor]:
    """The model's parameters by name, tied ones under each of their names; with its adapters added."""
    return summed_weights(model, dict(model.named_parameters(remove_duplicate=False)))


def layer_weights(weights: dict[str, Tensor], decoder: Decoder) -> list[LayerWeights]:
    """Every layer's weights, from `named_weights`."""
    found = []
    for i in range(decoder.layers):
        at = f"{decoder.prefix}layers.{i}."
        norms: dict[str, Any] = {field: weights[f"{at}{name}.weight"] for field, name in NORMS.items()}
        norms |= {field: weights.get(f"{at}{name}.weight") for field, name in HEAD_NORMS.items()}
        linears: dict[str, Any] = {
            f: (weights[f"{at}{n}.weight"], weights.get(f"{at}{n}.bias")) for f, n in LINEARS.items()
        }
        found.append(LayerWeights(**norms, **linears))
    return found


def last_norm(weights: dict[str, Tensor], decoder: Decoder) -> Tensor:
    return weights[f"{decoder.prefix}norm.weight"]


def embedding(weights: dict[str, Tensor], decoder: Decoder) -> Float[Tensor, "V H"]:
    return weights[f"{decoder.prefix}embed_tokens.weight"]


def describe(config: Any, names: Iterable[str]) -> Decoder | str:
    """The description of a model with this config and these parameter names, or why there is none."""
    kind = config.model_type
    if kind not in KINDS:
        return f"{kind} models have no fast way"
    names = set(names)
    prefix = "model." if "model.embed_tokens.weight" in names else ""
    if (activation := ACTIVATIONS.get(config.hidden_act)) is None:
        return f"the activation {config.hidden_act} is not known"
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if types - {"full_attention", "sliding_attention"}:
        return f"attention of the kinds {', '.join(sorted(types))} is not known"
    slides = "sliding_attention" in types or kind == "mistral"
    rope = dict(getattr(config, "rope_parameters", None) or {})
    window = getattr(config, "sliding_window", None) if slides else None
    if rope.get("rope_type") == "dynamic":  # as if it were none, up to the length that it was trained for
        rope["rope_type"], window = (
            "default",
            min(window or config.max_position_embeddings, config.max_position_embeddings),
        )
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn") or "rope_theta" not in rope:
        return f"a rotary embedding of the kind {rope.get('rope_type', 'per layer')} is not known"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or rope.get("mscale") or rope.get("factor", 1.0) is None:
        return "a partial rotary embedding, or one of several scales, is not known"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = Rotary(rope.get("rope_type", "default"), float(rope["rope_theta"]), size, tuple(sorted(rope.items())))
    found = Decoder(
        prefix=prefix,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=size,
        intermediate=config.intermediate_size,
        epsilon=float(config.rms_norm_eps),
        norm_offset=1.0 if kind == "gemma" else 0.0,
        activation=activation,
        rotary=rotary,
        rotates=tuple(map(bool, getattr(config, "no_rope_layers", None) or [True] * config.num_hidden_layers)),
        scale=float(config.attention_multiplier) if kind == "granite" else size**-0.5,
        embedding_scale=_embedding_scale(config),
        residual_scale=float(config.residual_multiplier) if kind == "granite" else 1.0,
        logit_scale=1 / config.logits_scaling if kind == "granite" else 1.0,
        window=window,
    )
    return _strangers(found, names) or found


def _embedding_scale(config: Any) -> float:
    match config.model_type:
        case "gemma":
            return float(config.hidden_size**0.5)
        case "granite":
            return float(config.embedding_multiplier)
        case _:
            return 1.0


def _strangers(decoder: Decoder, names: set[str]) -> str | None:
    """Why weights of these names are not such a decoder's, if they are not."""
    linears = {f"{name}.{part}" for name in LINEARS.values() for part in ("weight", "bias")}
    inner = linears | {f"{name}.weight" for name in (*NORMS.values(), *HEAD_NORMS.values())}
    needed = {f"{name}.weight" for name in (*NORMS.values(), *LINEARS.values())}
    at = [f"{decoder.prefix}layers.{i}." for i in range(decoder.layers)]
    outer = {f"{decoder.prefix}{name}.weight" for name in ("embed_tokens", "norm")}
    head = {"lm_head.weight"} if decoder.prefix else set()
    strange = names - {a + n for a in at for n in inner} - outer - head - {"score.weight", "score.bias"}
    missing = ({a + n for a in at for n in needed} | outer) - names
    if strange or missing:
        return f"weights are not as expected: {min(strange or missing)}"
    return None
