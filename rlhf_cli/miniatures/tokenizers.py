"""The miniatures' tokenizers: byte-level BPE in the form of Qwen2's and of RoBERTa's."""

from pathlib import Path
from typing import Any

VOCABULARY = {"qwen": 3072, "roberta": 2048}
"""At most. With 3,072 nearly every word of the generated reviews is one token, so that an actor can garble few."""
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer: transformers puts it back when it loads a folder of a Qwen2 model, so train with it."""

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a miniature of Qwen.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML with a default system text of its own, as Qwen's has: an explicit system message wins."""


def qwen_tokenizer(texts: list[str], *, eos: str) -> Any:
    """A Qwen2 tokenizer trained on the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END, IM_START, IM_END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY["qwen"],
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = Qwen2TokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=END, unk_token=END, additional_special_tokens=specials[1:]
    )
    made.chat_template = CHAT_TEMPLATE
    made.model_max_length = 1024
    return made


def roberta_tokenizer(texts: list[str]) -> Any:
    """A RoBERTa tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import RobertaTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY["roberta"],
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special: Any = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", special["</s>"]), ("<s>", special["<s>"]), add_prefix_space=False
    )
    return RobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=512)


def load(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
