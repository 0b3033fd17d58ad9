"""What is private in the libraries and used here is still there, and still what it was. A failure names the library."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from rlhf_cli.internals import hydra_private, torch_private, transformers_private, wandb_private

pytestmark = pytest.mark.smoke  # the first to know when a library has moved

PACKAGE = Path(transformers_private.__file__).parents[1]
PRIVATE = re.compile(
    r"hydra\._internal|hydra\.core\.(override_parser|plugins|global_hydra)|torch\._[a-z]\w*|torch\.ops\.|\baten\.|"
    r"\b_(version|base)\b(?!\s*=)|_foreach_\w+|transformers\.(cache_utils|masking_utils|integrations|models)\b|"
    r"\._attn_implementation|wandb\.(sdk|errors|setup)\b"
)


def test_private_names_stand_in_one_file_a_library() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name == "internals":
            continue
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if PRIVATE.search(line)]
        assert not lines, f"{file.relative_to(PACKAGE)} uses what is private: move it to rlhf_cli/internals/: {lines}"


def test_transformers_layers_are_called_as_we_know_it() -> None:
    layer, norm = transformers_private.qwen2_classes()
    known = {*transformers_private.LAYER_ARGUMENTS, transformers_private.cache_argument(layer)}
    taken = {
        name
        for name, p in inspect.signature(layer.forward).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name != "self"
    }
    assert taken == known, f"transformers moved: Qwen2DecoderLayer.forward takes {taken}, rl/quick.py knows {known}"
    assert norm(8).variance_epsilon == 1e-6, "transformers moved: Qwen2RMSNorm.variance_epsilon"


def test_transformers_cache_layer_is_filled_as_we_know_it() -> None:
    layer = transformers_private.DynamicLayer()
    key = torch.ones(1, 2, 3, 4)
    held, _ = layer.update(key, key)
    assert held.shape == key.shape, "transformers moved: DynamicLayer.update no longer returns what it holds"
    assert layer.get_seq_length() == 3, "transformers moved: DynamicLayer.get_seq_length"


def test_a_forward_without_a_cache_is_named() -> None:
    class Blind(torch.nn.Module):
        def forward(self, x: torch.Tensor, memory: object = None) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match=r"Blind.forward of transformers \S+ takes no KV cache .*: self, x, memory"):
        transformers_private.cache_argument(Blind)


def test_torchs_attention_kernel_is_softmax_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ v
    out, logsumexp = torch_private.cpu_attention(q.detach(), k.detach(), v.detach(), 0.0, True)
    torch.testing.assert_close(out, expected.detach(), msg=lambda m: f"torch moved: its CPU attention kernel. {m}")
    d = torch.randn_like(out)
    expected.backward(d)
    mine = torch_private.cpu_attention_backward(d, q.detach(), k.detach(), v.detach(), out, logsumexp, 0.0, True)
    for got, wanted in zip(mine, (q.grad, k.grad, v.grad), strict=True):
        torch.testing.assert_close(got, wanted, msg=lambda m: f"torch moved: its CPU attention's gradient. {m}")


def test_torchs_other_private_names() -> None:
    x = torch.linspace(-2, 2, 7)
    out = torch_private.silu_out(x, out=torch.empty_like(x))
    torch.testing.assert_close(out, x * x.sigmoid(), msg="torch moved: aten.silu.out")
    before = torch_private.version(x)
    x.add_(1)
    assert torch_private.version(x) > before, "torch moved: Tensor._version"
    assert torch_private.base(x[1:]) is x, "torch moved: Tensor._base"
    torch_private.copy_all([x], [torch.zeros(7)])
    assert not x.any(), "torch moved: _foreach_copy_"


def test_hydra_splits_a_sweep_as_we_know_it() -> None:
    parser = hydra_private.OverridesParser.create()
    batches = hydra_private.BasicSweeper.split_arguments(parser.parse_overrides(["a=1,2", "b=3"]), None)
    jobs = [list(job) for batch in batches for job in batch]
    assert jobs == [["a=1", "b=3"], ["a=2", "b=3"]], "Hydra moved: BasicSweeper.split_arguments"
    flags = vars(hydra_private.get_args_parser().parse_args(["--multirun", "a=1"]))
    wanted = {"overrides", "multirun", "config_dir", "cfg", "info", "help", "hydra_help", "shell_completion"}
    assert wanted <= flags.keys(), f"Hydra moved: its flags are {sorted(flags)}"


def test_wandb_tells_its_settings_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = wandb_private.settings()
    for name in ("base_url", "api_key", "identity_token_file"):
        assert hasattr(settings, name), f"W&B moved: its settings have no {name}"
    assert issubclass(wandb_private.Error, Exception), "W&B moved: wandb.errors.Error"
