"""What rlhf uses of torch beyond its documented interface. Tested with the versions in pyproject.toml.

- ATen operations that have no public Python name: the CPU's attention kernel with its log-sum-exp and its backward
  pass, and the fused SiLU.
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
silu_out = _aten.silu.out
silu_backward_out = _aten.silu_backward.grad_input
copy_all = torch._foreach_copy_


def version(tensor: Tensor) -> int:
    """It grows with each change in place that autograd is told of."""
    return tensor._version


def base(tensor: Tensor) -> Tensor:
    """What the tensor is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base
