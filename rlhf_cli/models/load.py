"""Loading actors, critics and classifiers from plain Hugging Face folders or the hub. Weights only, no remote code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config import hub
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import names_a_folder
from rlhf_cli.rl.packing import register
from rlhf_cli.rl.quick import quicken


def load_actor(path: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM without dropout. Its generation_config is kept for saving and never used for rollouts."""
    from transformers import AutoModelForCausalLM

    model = _model(AutoModelForCausalLM, path, dtype=dtype, attn_implementation=register())
    return _placed(_without_dropout(model), device)


def load_critic(path: str, *, device: torch.device) -> Any:
    """The causal LM with its LM head replaced by a value head (`.score`), which starts at 0."""
    from transformers import AutoModelForTokenClassification

    with _no_warnings():
        kind, attention = AutoModelForTokenClassification, register()
        critic = _model(kind, path, new=("score.",), dtype=torch.float32, num_labels=1, attn_implementation=attention)
    torch.nn.init.zeros_(critic.score.weight)
    torch.nn.init.zeros_(critic.score.bias)
    return _placed(_without_dropout(critic), device)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """A head that is new by design needs no warning about it."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_classifier(
    path: str, *, device: torch.device, dtype: torch.dtype = torch.float32, labels: int | None = None
) -> Any:
    """`labels`: how many outputs a NEW head has, instead of the folder's own."""
    from transformers import AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification
    if labels is None:
        return _placed(_model(kind, path, dtype=dtype).eval(), device)
    with _no_warnings():
        model = _model(
            kind,
            path,
            new=("classifier.", "score."),
            dtype=dtype,
            num_labels=labels,
            problem_type="regression",
            ignore_mismatched_sizes=True,
        )
    return _placed(model.eval(), device)


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, path)


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that may end a response: the tokenizer's EOS, the generation config's, and Qwen's two."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids |= set(configured) if isinstance(configured, list) else {configured}
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary.get(token) for token in ("<|im_end|>", "<|endoftext|>")}
    found = tuple(sorted(i for i in ids if i is not None and i < model.get_input_embeddings().weight.shape[0]))
    if not found:
        raise UserError("the actor's tokenizer has no EOS token that the model knows: responses could never end")
    return found


def class_index(model: Any, name: str) -> int:
    """The index of a class, by name and case-insensitively: the order differs between checkpoints."""
    labels = {str(label).lower(): int(i) for i, label in model.config.id2label.items()}
    if name.lower() not in labels:
        listed = ", ".join(map(str, model.config.id2label.values()))
        raise UserError(f"the reward model has no class {name!r}; it has: {listed} (set reward.target)")
    return labels[name.lower()]


def quiet() -> None:
    """No progress bars of transformers between our lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _model(auto: Any, path: str, *, new: tuple[str, ...] = (), **options: Any) -> Any:
    """A model whose every weight is in the folder, but for those that are `new` by design.

    transformers fills up what is missing with random numbers and a warning; here that is the wrong architecture.
    """
    model, info = _load(auto, path, output_loading_info=True, **options)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(new or "\0"))
    if missing:
        kind = auto.__name__.removeprefix("AutoModelFor")
        raise UserError(
            f"{path} is no {kind}: it holds no weights for {', '.join(missing[:3])} (config.json calls it "
            f"{architecture(path)}); give a model of that kind"
        )
    return model


def _load(auto: Any, path: str, **options: Any) -> Any:
    quiet()
    if Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser())
    elif names_a_folder(path):
        raise UserError(f"{path}: no such folder (give a local model folder or a hub id such as Qwen/Qwen2.5-0.5B)")
    elif (why := hub.obstacle(f"{path}/resolve/main/config.json")) is not None:
        if not hub.on_this_machine(path):
            raise UserError(
                f"{path} is not on this machine and the Hugging Face hub does not answer: {why}.\n"
                f"  Fetch it where there is a network: hf download {path}\n"
                "  or give a local folder (actor.path=, critic.path=, reward.path=),\n"
                "  or use the miniatures: scale=mini"
            )
        options["local_files_only"] = True
    try:
        return auto.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be loaded as {auto.__name__.removeprefix('Auto')}: {first}") from error


def _placed(model: Any, device: torch.device) -> Any:
    """The model on the device, in memory of its own there."""
    return own_memory(model) if device.type == "cpu" else model.to(device)


def own_memory(model: torch.nn.Module) -> torch.nn.Module:
    """Copy every weight out of the file that it is mapped from, into memory that torch allocates: 64-byte aligned.

    A mapped weight starts where the file's header happens to end, and on a CPU the last digits of a product depend on
    how its factors are aligned: a checkpoint's header is not that of the model a run started from, so a resumed run
    would not be the uninterrupted one. One weight at a time; tied weights stay tied; the file is let go of.
    """
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model


def _without_dropout(model: Any) -> Any:
    """Dropout off even in train mode, which gradient checkpointing wants: sampled and scored must agree."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return quicken(model.eval())


def architecture(path: str) -> str:
    """What a folder's config.json calls its model, for tables."""
    try:
        return str(json.loads((Path(path) / "config.json").read_text())["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return "?"
