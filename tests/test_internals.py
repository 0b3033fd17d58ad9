"""What is private in the libraries and used here is still there, and still what it was. A failure names the library."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rlhf_cli.engine import plain
from rlhf_cli.internals import hydra_private, torch_private, wandb_private

pytestmark = pytest.mark.smoke  # the first to know when a library has moved

PACKAGE = Path(torch_private.__file__).parents[1]
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


def test_nothing_private_of_transformers_is_used() -> None:
    assert not list(PACKAGE.rglob("transformers_private.py"))


def test_a_forward_without_a_cache_is_named() -> None:
    with pytest.raises(TypeError, match=r"takes no cache under a name that rlhf knows"):
        plain.cache_name(frozenset({"input_ids", "memory"}))


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
    activations = {"silu": functional.silu, "gelu": functional.gelu}
    activations["gelu_tanh"] = partial(functional.gelu, approximate="tanh")
    for name, function in activations.items():
        y = x.clone().requires_grad_()
        expected = function(y)
        out = torch_private.activation_out(name, x, out=torch.empty_like(x))
        torch.testing.assert_close(out, expected.detach(), msg=f"torch moved: aten.{name}.out")
        expected.sum().backward()
        d = torch_private.activation_backward_out(name, torch.ones(7), x, out=torch.empty(7))
        torch.testing.assert_close(d, y.grad, msg=f"torch moved: the gradient of aten.{name}")
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
