"""What is measured: model shapes, prompts and response lengths, saved once as plain Hugging Face folders."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEQUENCES, GROUP, PROMPT, RESPONSE = 64, 8, 12, 48
BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3


@dataclass(frozen=True)
class Shape:
    """(hidden, layers, heads, KV heads, intermediate, vocabulary) of the actor and the same, without KV heads and
    vocabulary, of the reward model. Its vocabulary is the actor's: TRL's PPO gives it the actor's tokens. TRL's
    micro-batches are those that were fastest there."""

    actor: tuple[int, int, int, int, int, int]
    reward: tuple[int, int, int, int]
    trl_micro: dict[str, int]
    rlhf_micro: dict[str, int]


SHAPES = {
    "mini": Shape((128, 4, 4, 4, 512, 2048), (128, 4, 4, 512), {"ppo": 64, "grpo": 64}, {"ppo": 32, "grpo": 32}),
    "small": Shape((512, 8, 8, 8, 2048, 32000), (384, 6, 6, 1536), {"ppo": 16, "grpo": 16}, {"ppo": 8, "grpo": 8}),
    "smollm2-135m": Shape(
        (576, 30, 9, 3, 1536, 49152), (384, 6, 12, 1536), {"ppo": 8, "grpo": 16}, {"ppo": 8, "grpo": 8}
    ),
    "qwen2.5-0.5b": Shape(
        (896, 24, 14, 2, 4864, 151936), (768, 12, 12, 3072), {"ppo": 64, "grpo": 64}, {"ppo": 64, "grpo": 64}
    ),
}


def make(name: str, folder: Path) -> Path:
    """Random tied weights, one tokenizer of words w4, w5, … for both models, prompts and lengths; made once."""
    if (folder / "work.json").exists():
        return folder
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[name].actor
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=inner,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    ).save_pretrained(folder / "actor")
    hidden, layers, heads, inner = SHAPES[name].reward
    RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=514,
            type_vocab_size=1,
            num_labels=3,
            id2label={0: "negative", 1: "neutral", 2: "positive"},
            label2id={"negative": 0, "neutral": 1, "positive": 2},
        )
    ).save_pretrained(folder / "reward")
    tokenizer(vocabulary).save_pretrained(folder / "tokenizer")
    draw = random.Random(0)
    work = {
        "prompts": [[draw.randrange(4, vocabulary) for _ in range(PROMPT)] for _ in range(SEQUENCES)],
        "lengths": {"fixed": [RESPONSE] * SEQUENCES, "natural": natural(draw)},
    }
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    return folder


def natural(draw: random.Random) -> list[int]:
    """Exponential lengths, cut at the limit, with a mean of a third of it."""
    shares = [draw.expovariate(1.0) for _ in range(SEQUENCES)]
    low, high = 1.0, 10.0 * RESPONSE
    for _ in range(60):
        middle = (low + high) / 2
        lengths = [min(RESPONSE, 2 + int(middle * share)) for share in shares]
        low, high = (middle, high) if sum(lengths) < SEQUENCES * RESPONSE / 3 else (low, middle)
    return lengths


def tokenizer(words: int) -> Any:
    """Of words: what one side decodes the other side's tokenizer reads back to the same ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN} | {f"w{i}": i for i in range(4, words)}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, padding_side="left", **names)


def load_words(folder: Path) -> Any:
    """The tokenizer as it was saved (`AutoTokenizer` would replace its parts by those of the model's family)."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    file = str(folder / "tokenizer" / "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=file, model_max_length=512, padding_side="left", **names)
