"""Loading actors, critics and classifiers from plain Hugging Face folders or the hub. Weights only, no remote code."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config import hub
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import GGUF, is_gguf, names_a_folder
from rlhf_cli.engine import lora, plain
from rlhf_cli.engine.dropout import without_dropout
from rlhf_cli.engine.gate import facts_of, way_of
from rlhf_cli.engine.load_errors import why_not
from rlhf_cli.engine.value_head import ValueModel, head_size, restore_head, saved_head


def load_actor(path: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM without dropout, with the attention it was made with. Its generation_config is kept for saving and
    never used for rollouts. Raises UserError where the model is no causal LM."""
    if (adapter := lora.saved_config(path)) is not None:
        model = _checked(_causal_lm(adapter["base_model_name_or_path"], device, dtype=dtype))
        lora.load(model, path)
        return model
    return _checked(_causal_lm(path, device, dtype=dtype))


def lowered(model: Any, dtype: torch.dtype) -> Any:
    """A frozen model for products in `dtype`, with exactly the numbers of float32 weights read under autocast.

    On the fast way only the factors of matrix products are rounded, so those matrices are kept rounded. The rest
    (norms, biases, an embedding that rounding would change) stays float32: rounded too, it would read other log-probs
    than the policy that it was copied from. The plain way rounds elsewhere, so there all stays float32.
    """
    decoder = way_of(model).decoder
    if dtype == torch.float32 or decoder is None:
        return model
    table = model.get_input_embeddings().weight
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        if parameter.ndim == 2 and (parameter is not table or bool((rounded.float() == parameter).all())):
            parameter.data = rounded
    return model


def load_critic(path: str, *, device: torch.device) -> Any:
    """A value model on the trunk of a causal LM; its value head (`.score`) starts at 0, or is that of a saved critic's
    folder."""
    from transformers import AutoModel

    saved = saved_head(path)
    if saved is not None and not _holds_causal_lm(path):
        trunk = _placed(_model(AutoModel, path, dtype=torch.float32), device)
        critic = ValueModel(_checked(trunk), _saved_size(saved))
    else:
        whole = _causal_lm(path, device, dtype=torch.float32)
        size = head_size(whole)
        critic = ValueModel(_checked(trunk_of(whole)), size)
    if saved is not None:
        restore_head(critic, path)
    return critic.eval()


def _causal_lm(path: str, device: torch.device, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    _refuse_encoders(path)
    model = _model(AutoModelForCausalLM, path, **options)
    return _placed(_dequantised(model) if is_gguf(path) else model, device)


def _dequantised(model: Any) -> Any:
    """The same weights in a model that transformers will save: it refuses to save what came from a GGUF file, although
    its weights are plain numbers by now."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    config = AutoConfig.for_model(**known)
    made = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made.eval()


def _checked(model: Any) -> Any:
    """Dropout off, and the way found that it will take."""
    without_dropout(model)
    if way_of(model).decoder is None:
        facts_of(model)
    return model


def trunk_of(model: Any) -> Any:
    """The base model, where its last hidden states are what the LM head is given; else the whole model."""
    ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    given: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        with torch.no_grad():
            plain.outputs(model.eval(), ids)
            states = plain.outputs(model.base_model, ids)
    except (KeyError, TypeError, ValueError):
        return model
    finally:
        handle.remove()
    same = states.shape == given[0].shape and torch.allclose(states, given[0], rtol=1e-3, atol=1e-4)
    return model.base_model if same else model


def _holds_causal_lm(path: str) -> bool:
    return any(mark in architecture(path) for mark in ("CausalLM", "LMHead"))


def _saved_size(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        return int(opened.get_tensor("score.weight").shape[1])


def _refuse_encoders(path: str) -> None:
    """Raise UserError for models that are known by their config to be no decoder-only language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = _load(AutoConfig, path)
    kind = config.model_type
    accepted = "rlhf trains decoder-only causal language models (GPT-2, Llama, Qwen, Gemma, Mistral, Mamba, …)"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{path} is an encoder-decoder ({kind}): {accepted}; give one of these with actor.path=")
    made = (config.architectures or ["?"])[0]
    if made.endswith("ForSequenceClassification"):
        raise UserError(
            f"{path} is a classifier ({made}), which judges texts (reward.path=) and writes none: {accepted}"
        )
    if made.endswith("ForMaskedLM"):
        raise UserError(f"{path} is an encoder ({made}), which is no causal language model: {accepted}")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    text = getattr(config, "text_config", None)
    hint = ""
    if text is not None and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        hint = f"; its text part is a {text.model_type}: give that alone"
    raise UserError(f"{path} is a {kind} model, which is no causal language model: {accepted}{hint}")


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
    path: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    labels: int | None = None,
    classes: Sequence[str] = (),
) -> Any:
    """`labels`: how many outputs a NEW head has, instead of the folder's own; `classes`: the same, by their names."""
    from transformers import AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification
    if labels is None and not classes:
        return _placed(_model(kind, path, dtype=dtype).eval(), device)
    head: dict[str, Any] = {"num_labels": labels, "problem_type": "regression"}
    if classes:
        names = dict(enumerate(classes))
        head = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        head |= {"num_labels": len(names), "problem_type": "single_label_classification"}
    with _no_warnings():
        model = _model(
            kind,
            path,
            new=("classifier.", "score.", "pre_classifier."),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            **head,
        )
    return _placed(model.eval(), device)


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, path)


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that may end a response: the tokenizer's EOS, the generation config's, and Qwen's two."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids |= set(configured) if isinstance(configured, list) else {configured}
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary.get(token) for token in ("<|im_end|>", "<|endoftext|>")}
    found = tuple(sorted(i for i in ids if i is not None and i < model.get_input_embeddings().weight.shape[0]))
    if not found:
        raise UserError("the actor's tokenizer has no EOS token that the model knows: responses could never end")
    return found


def context_length(model: Any) -> int | None:
    """Tokens that fit in the model's context, or None where its kind has no limit."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # its angles change for the whole text when it grows longer than this
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
    found = (getattr(config, name, None) for name in names)
    return next((int(n) for n in found if isinstance(n, int) and n > 0), None)


def class_index(model: Any, name: str) -> int:
    """The index of a class, by name and case-insensitively: the order differs between checkpoints."""
    labels = {str(label).strip().lower(): int(i) for i, label in model.config.id2label.items()}
    if name.strip().lower() not in labels:
        which = model.config.name_or_path
        first = next(iter(model.config.id2label.values()))
        todo = f"set reward.target (of gold=: gold.target) to the one that you mean, say reward.target='{first}'"
        if all(re.fullmatch(r"label_\d+", label) for label in labels):
            todo += f", or write the names of the classes, as its model card says, into id2label in {which}/config.json"
        raise UserError(f"the classifier {which} has no class {name!r}; it has: {listed_labels(model)} ({todo})")
    return labels[name.strip().lower()]


def listed_labels(model: Any) -> str:
    """The names of a classifier's outputs, in their order."""
    return ", ".join(str(label) for _, label in sorted(model.config.id2label.items()))


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
    if is_gguf(path):
        options["gguf_file"], path = Path(path).name, str(Path(path).expanduser().parent)
    elif Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser())
    elif path.endswith(GGUF):
        raise UserError(f"{path}: no such file (from the hub: hf download owner/name {Path(path).name} --local-dir .)")
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
    bars = redirect_stderr(io.StringIO()) if "gguf_file" in options else nullcontext()
    try:
        with bars:  # transformers shows these whatever it is told
            return auto.from_pretrained(path, trust_remote_code=False, **options)
    except ImportError as error:
        if "gguf_file" in options:
            raise UserError(f"reading {options['gguf_file']} needs two packages: pip install 'rlhf[gguf]'") from error
        raise
    except Exception as error:
        kind = auto.__name__.removeprefix("Auto")
        whole = str(Path(path, options["gguf_file"])) if "gguf_file" in options else path
        raise UserError(f"{whole} cannot be loaded as {kind}: {why_not(whole, error)}") from error


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


def architecture(path: str) -> str:
    """What a folder's config.json calls its model, for tables."""
    try:
        return str(json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return "?"
