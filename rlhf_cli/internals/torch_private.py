"""What rlhf uses of torch beyond its documented interface. Tested with the versions in pyproject.toml.

- ATen operations that have no public Python name: the CPU's attention kernel with its log-sum-exp and its backward
  pass, and activations with their gradients into given memory.
- A tensor's version counter, and the tensor that a view is of.
- Many copies in one call.
"""

from typing import Any

import torch
from torch import Tensor

_aten: Any = torch.ops.aten

cpu_attention = _aten._scaled_dot_product_flash_attention_for_cpu
"""(query, key, value, dropout, causal) -> (attended, logsumexp)"""
cpu_attention_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward
"""(gradient, query, key, value, attended, logsumexp, dropout, causal) -> gradients of query, key, value"""
copy_all = torch._foreach_copy_


def version(tensor: Tensor) -> int:
    """It grows with each change in place that autograd is told of."""
    return tensor._version


def base(tensor: Tensor) -> Tensor:
    """What the tensor is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base


def activation_out(name: str, x: Tensor, *, out: Tensor) -> Tensor:
    """silu, gelu or gelu_tanh of x; `out` may be x."""
    if name == "silu":
        return _aten.silu.out(x, out=out)
    return _aten.gelu.out(x, approximate="tanh" if name == "gelu_tanh" else "none", out=out)


def activation_backward_out(name: str, d: Tensor, x: Tensor, *, out: Tensor) -> Tensor:
    """The gradient in x, from the gradient `d` of `activation_out`; `out` may be d."""
    if name == "silu":
        return _aten.silu_backward.grad_input(d, x, grad_input=out)
    return _aten.gelu_backward.grad_input(d, x, approximate="tanh" if name == "gelu_tanh" else "none", grad_input=out)
