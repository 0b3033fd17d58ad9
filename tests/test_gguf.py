"""`actor.path=model.gguf`: a file of llama.cpp's format, dequantised when it is loaded."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import CPU, alone, draw, gap, plainly
from helpers.tiny_models import make, tokenizer

from rlhf_cli.cli import dispatch
from rlhf_cli.config.errors import UserError
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.engine import load
from rlhf_cli.engine.gate import way_of
from rlhf_cli.engine.load import load_actor, load_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), [r.text for r in generate_reviews(200, seed=0)])


def write_gguf(file: Path, model: Any, tokens: Any) -> None:
    """A Qwen2 and its tokenizer as llama.cpp's converter names them, in float32."""
    import json

    import gguf

    config, writer = model.config, gguf.GGUFWriter(str(file), "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    bpe = json.loads(tokens.backend_tokenizer.to_str())
    names = [tokens.convert_ids_to_tokens(i) for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in tokens.all_special_tokens else 1 for name in names])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["model"]["merges"]])
    writer.add_eos_token_id(tokens.eos_token_id)
    writer.add_bos_token_id(tokens.eos_token_id)
    for name, weight in model.state_dict().items():
        for theirs, its in NAMES.items():
            name = name.replace(theirs, its)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="rlhf[gguf] is not installed")
def test_a_gguf_file_is_sampled_trained_and_saved_as_a_plain_folder(tmp_path: Path, tokens: Any) -> None:
    whole, file = plainly(make("qwen2", tmp_path / "model", tokens)), tmp_path / "a model.gguf"
    write_gguf(file, whole, tokens)
    actor, read = load_actor(str(file), device=CPU), load_tokenizer(str(file))
    assert way_of(actor).decoder is not None
    assert read("This movie is", add_special_tokens=False) == tokens("This movie is", add_special_tokens=False)
    rollout = draw(actor, tokens, [3, 5], 2)
    assert gap(rollout.logprobs, alone(whole, rollout, 0.9)[0]) < 1e-4
    options = [
        "scale=mini", "device=cpu", "tracking=none", "steps=1", "data.source=generated", "data.train=12", "data.test=6",
        "data.labeler=vader", "val.prompts=3", "rollout.batch_size=8", "rollout.max_response_length=8", "reward=vader",
        "gold=none", "prompt=plain", "optim.warmup_steps=0", "optim.actor_lr=1e-3", f"cache_dir={tmp_path / 'cache'}",
        f"actor.path={file}", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert dispatch(["train", *options]) == 0
    saved = plainly(tmp_path / "run" / "checkpoints" / "step_000001" / "actor")
    assert not hasattr(saved.config, "quantization_config")
    assert any(not torch.equal(saved.state_dict()[name], weight) for name, weight in whole.state_dict().items())
    assert dispatch(["train", f"resume={tmp_path / 'run'}", "steps=2"]) == 0


class Loader:
    """Stands for an Auto class: notes what it is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.seen = error, list[Any]()

    def from_pretrained(self, path: str, **options: Any) -> str:
        self.seen.append((path, options))
        if self.error is not None:
            raise self.error
        return "loaded"


def test_a_gguf_file_is_asked_for_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    auto = Loader()
    assert load._load(auto, str(tmp_path / "model.gguf"), dtype=torch.float32) == "loaded"
    assert auto.seen == [
        (str(tmp_path), {"trust_remote_code": False, "dtype": torch.float32, "gguf_file": "model.gguf"})
    ]
    with pytest.raises(UserError, match=r"model.gguf needs two packages: pip install 'rlhf\[gguf\]'"):
        load._load(Loader(ImportError("gguf")), str(tmp_path / "model.gguf"))
    with pytest.raises(UserError, match=r"none.gguf: no such file"):
        load._load(Loader(), str(tmp_path / "none.gguf"))


def test_a_gguf_file_that_is_none_or_is_not_there_is_a_wrong_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no GGUF at all")
    for name, said in (("model.gguf", "model.gguf"), ("none.gguf", "no such file")):
        out = tmp_path / "out.jsonl"
        assert dispatch(["sample", "I", "checkpoint=none", f"actor.path={tmp_path / name}", f"out={out}"]) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert "Traceback" not in shown
