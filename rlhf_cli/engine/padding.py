"""How texts of different lengths share a batch of a sequence classifier, and how long they may be."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.config.errors import UserError
from rlhf_cli.engine.load import context_length

TOLERANCE = 1e-3
"""Of the outputs, in float32."""
LOW_TOLERANCE = 0.2


def settle_padding(model: Any, tokenizer: Any, *, name: str) -> None:
    """Give model and tokenizer one padding token and the side on which it changes no output.

    Decoders (GPT2ForSequenceClassification and its like) look for the last token that is not `config.pad_token_id`, so
    it is the config's, else the tokenizer's, else EOS. Raises UserError where padding changes outputs on either side.
    """
    pad = _padding_id(model, tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    for side in ("right", "left"):
        tokenizer.padding_side = side
        if _padding_changes_nothing(model, tokenizer):
            return
    raise UserError(
        f"{name}: {model.config.model_type} gives other outputs to a text that shares a batch with a longer one; rlhf "
        "judges texts in batches: give another model"
    )


def _padding_id(model: Any, tokenizer: Any) -> int:
    count = model.get_input_embeddings().weight.shape[0]
    # a decoder that was trained to be read at the EOS that its tokenizer appends must not take that for padding
    ends = tokenizer("a")["input_ids"][-1:]
    known = [model.config.get_text_config().pad_token_id, tokenizer.pad_token_id]
    others = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1)
    candidates = [*known, *(i for i in others if i not in ends)]
    return next(int(i) for i in candidates if i is not None and 0 <= i < count)


@torch.no_grad()
def _padding_changes_nothing(model: Any, tokenizer: Any) -> bool:
    """Tried on a short text beside a longer one."""
    first, second = (text_ids(tokenizer, text) for text in ("a", "a b c d"))

    def logits(*rows: list[int]) -> Tensor:
        return padded_outputs(model, tokenizer, list(rows)).float()[0]

    try:
        alone, together = logits(first), logits(first, second)
    except ValueError:  # BART and its like count EOS tokens
        return False
    limit = TOLERANCE if next(model.parameters()).dtype == torch.float32 else LOW_TOLERANCE
    return bool((alone - together).abs().max() <= limit * (1 + alone.abs().max()))


def padded_outputs(model: Any, tokenizer: Any, rows: list[list[int]]) -> Tensor:
    """The model's logits [B, C] of tokenised texts, with gradient where that is on."""
    return model(**_padded(model, tokenizer, rows)).logits


def padded_features(model: Any, tokenizer: Any, rows: list[list[int]]) -> Tensor:
    """The last hidden layer of tokenised texts, the mean over each one's tokens: [B, H]."""
    batch = _padded(model, tokenizer, rows)
    states = model(**batch, output_hidden_states=True).hidden_states[-1].float()
    real = batch["attention_mask"].unsqueeze(-1).float()
    return (states * real).sum(1) / real.sum(1)


def _padded(model: Any, tokenizer: Any, rows: list[list[int]]) -> dict[str, Tensor]:
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(next(model.parameters()).device)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def text_ids(tokenizer: Any, text: str, limit: int | None = None) -> list[int]:
    """The text's tokens with special tokens, at most `limit`; one token at least, so that nothing can be judged too."""
    options = {} if limit is None else {"truncation": True, "max_length": limit}
    return tokenizer(text, **options)["input_ids"] or [nothing(tokenizer)]


def nothing(tokenizer: Any) -> int:
    """The token that stands for a text without any."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((int(i) for i in ids if i is not None), 0)


def position_limit(model: Any, tokenizer: Any) -> int:
    """Tokens of a text, at most; sys.maxsize where neither the model nor its tokenizer has a limit.

    RoBERTa and its like count positions from the padding token's id on.
    """
    limits = [tokenizer.model_max_length, context_length(model) or sys.maxsize]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(sys.maxsize, *(int(limit) for limit in limits))
