"""Tiny random language models of many kinds, saved as plain folders: two layers, weights large enough that faults show.

Tests use a dozen of them, `scripts/families.py` all.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 48, 2, 4, 2, 96, 256
LLAMA = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "intermediate_size": INNER, "max_position_embeddings": CONTEXT,
}  # fmt: skip
NEOX = LLAMA | {"num_key_value_heads": HEADS}
SMALL_HEADS = LLAMA | {"head_dim": 16}
GPT = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
TIED = {"tie_word_embeddings": True}
WINDOW = {"sliding_window": 8}
DROPOUT = {"attention_dropout": 0.1, "hidden_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"]} | WINDOW
OPT = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": INNER,
    "max_position_embeddings": CONTEXT, "word_embed_proj_dim": HIDDEN, "dropout": 0.1, "layerdrop": 0.1,
} | TIED  # fmt: skip
MAMBA = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 8} | TIED
MAMBA2 = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_heads": 6, "head_dim": 16, "state_size": 8} | TIED
DEEPSEEK = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": HEADS,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", LLAMA),
    "qwen2, tied": ("qwen2", LLAMA | TIED),
    "qwen2, window of 8": ("qwen2", LLAMA | MIXED | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2, yarn": ("qwen2", LLAMA | {"rope_parameters": YARN}),
    "qwen2, gelu": ("qwen2", LLAMA | {"hidden_act": "gelu"}),
    "qwen3": ("qwen3", SMALL_HEADS),
    "llama": ("llama", LLAMA),
    "llama, tied (SmolLM2)": ("llama", LLAMA | TIED),
    "llama 3 rotary": ("llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama, biases": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", LLAMA),
    "mistral, window of 8": ("mistral", LLAMA | WINDOW),
    "smollm3": ("smollm3", LLAMA | {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2}),
    "gemma": ("gemma", SMALL_HEADS | TIED),
    "granite": ("granite", LLAMA | {
        "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1,
    }),
    "gemma 2": ("gemma2", SMALL_HEADS | TIED | WINDOW | {
        "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16,
    }),
    "gemma 3": ("gemma3_text", SMALL_HEADS | TIED | MIXED | {"query_pre_attn_scalar": 16}),
    "gpt2": ("gpt2", GPT | DROPOUT | TIED),
    "gpt_neo": ("gpt_neo", {
        "hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT, "attention_types": [[["global", "local"], 1]], "window_size": 8,
    } | DROPOUT | TIED),
    "gpt_neox (Pythia)": ("gpt_neox", NEOX | DROPOUT),
    "gptj": ("gptj", GPT | DROPOUT | {"rotary_dim": 8}),
    "codegen": ("codegen", GPT | DROPOUT | {"rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", GPT | DROPOUT | TIED),
    "gpt_oss": ("gpt_oss", SMALL_HEADS | MIXED | EXPERTS),
    "opt": ("opt", OPT),
    "opt, projected": ("opt", OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS} | DROPOUT | TIED),
    "mpt": ("mpt", {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT} | TIED),
    "falcon": ("falcon", NEOX | {"multi_query": True} | DROPOUT | TIED),
    "falcon, alibi": ("falcon", NEOX | {"alibi": True, "new_decoder_architecture": False} | DROPOUT | TIED),
    "phi": ("phi", LLAMA | DROPOUT),
    "phi3": ("phi3", LLAMA | DROPOUT | WINDOW),
    "cohere": ("cohere", LLAMA | TIED | {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere 2": ("cohere2", SMALL_HEADS | TIED | MIXED | {"logit_scale": 0.25}),
    "granitemoe": ("granitemoe", LLAMA | EXPERTS | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "olmo": ("olmo", LLAMA | {"clip_qkv": 1.0}),
    "olmo2": ("olmo2", LLAMA),
    "olmo3": ("olmo3", LLAMA | MIXED),
    "olmoe": ("olmoe", LLAMA | EXPERTS),
    "stablelm": ("stablelm", LLAMA | DROPOUT | {"partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", LLAMA | {"residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}),
    "glm": ("glm", SMALL_HEADS),
    "glm4": ("glm4", SMALL_HEADS),
    "nemotron": ("nemotron", LLAMA | DROPOUT),
    "mixtral": ("mixtral", LLAMA | EXPERTS | {"router_jitter_noise": 0.1}),
    "qwen2_moe": ("qwen2_moe", LLAMA | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", SMALL_HEADS | EXPERTS),
    "deepseek_v3": ("deepseek_v3", LLAMA | DEEPSEEK),
    "helium": ("helium", LLAMA | {"head_dim": 12}),
    "ernie4_5": ("ernie4_5", SMALL_HEADS),
    "seed_oss": ("seed_oss", SMALL_HEADS | DROPOUT),
    "nanochat": ("nanochat", LLAMA | {"final_logit_softcapping": 5.0}),
    "biogpt": ("biogpt", NEOX | DROPOUT | {"layerdrop": 0.1} | TIED),
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", MAMBA2 | {"n_groups": 1, "expand": 2, "chunk_size": 16}),
    "falcon_mamba": ("falcon_mamba", MAMBA),
    "recurrent_gemma": ("recurrent_gemma", SMALL_HEADS | TIED | {
        "lru_width": HIDDEN, "attention_window_size": 16, "block_types": ["recurrent", "attention"],
    }),
    "jamba": ("jamba", LLAMA | EXPERTS | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 8, "use_mamba_kernels": False,
    }),
    "bamba": ("bamba", LLAMA | {
        "attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16,
    }),
    "lfm2": ("lfm2", LLAMA | {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("qwen3_next", SMALL_HEADS | EXPERTS | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 32,
    }),
}  # fmt: skip


def tokenizer(folder: Path, texts: list[str]) -> Any:
    """A byte-level tokenizer of these texts, whose padding token is its EOS."""
    from rlhf_cli.miniatures.tokenizers import qwen_tokenizer

    made = qwen_tokenizer(texts, eos="<|endoftext|>")
    made.save_pretrained(folder)
    return made


def make(kind: str, folder: Path, tokens: Any, **more: Any) -> Path:
    """A model of this kind and the tokenizer, saved in the folder."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type, options = KINDS[kind]
    eos = tokens.eos_token_id
    given = {"vocab_size": len(tokens), "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    config = CONFIG_MAPPING[model_type](**(given | {"tie_word_embeddings": False} | options | more))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    _randomize(model)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@torch.no_grad()
def _randomize(model: Any) -> None:
    """Matrices, biases and norms away from what they are born as; other vectors (a state's decay, say) stay."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("sinks"):
            parameter.copy_(2 * noise)
        elif parameter.ndim >= 2:
            parameter.copy_(0.25 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "norm" in name or "ln" in name:
            parameter.add_(0.2 * noise)
