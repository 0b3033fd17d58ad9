"""The trust region in a page: the natural gradient by conjugate gradient, and a line search (TRPO).

Schulman et al. 2015, "Trust Region Policy Optimization", section 6 and appendix C: maximise the surrogate under
KL(π_old ‖ π) ≤ δ. Near π_old the KL is ½ xᵀFx, F its Hessian (the Fisher matrix), so the best step is
F⁻¹g · √(2δ / gᵀF⁻¹g). F is never built: F·v is the gradient of (∇KL · v), and conjugate gradient needs no more.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_product(value: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """(∇² value) · vector, by differentiating twice. Shapes: scalar, [n] in all, [n] -> [n]."""
    gradient = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    inner = (flat(gradient) * vector).sum()
    return flat(torch.autograd.grad(inner, parameters, allow_unused=True, materialize_grads=True))


def conjugate_gradient(product: Product, b: Tensor, *, steps: int, tolerance: float = 1e-10) -> Tensor:
    """x with A x ≈ b for a positive definite A given as `product` (Hestenes & Stiefel 1952)."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    error = residual.dot(residual)
    for _ in range(steps):
        if error <= tolerance:
            break
        moved = product(direction)
        alpha = error / direction.dot(moved)
        x += alpha * direction
        residual -= alpha * moved
        error, before = residual.dot(residual), error
        direction = residual + error / before * direction
    return x


def natural_step(gradient: Tensor, fisher: Product, *, delta: float, damping: float, cg_steps: int) -> Tensor:
    """The full step downhill, scaled to ½ xᵀFx = δ; `damping` · I is added to F, which may be singular."""
    direction = conjugate_gradient(lambda v: fisher(v) + damping * v, gradient, steps=cg_steps)
    curvature = direction.dot(fisher(direction) + damping * direction)
    return -direction * torch.sqrt(2 * delta / curvature.clamp(min=1e-12))


@torch.no_grad()
def line_search(
    parameters: Sequence[Tensor],
    step: Tensor,
    loss_and_kl: Callable[[], tuple[float, float]],
    *,
    delta: float,
    tries: int,
) -> tuple[float, float]:
    """Halve the step until the TRUE KL is ≤ δ and the loss is lower than before; (share of the step taken, KL).

    If no try does, the parameters are put back as they were: (0, 0).
    """
    before = [parameter.clone() for parameter in parameters]
    start, _ = loss_and_kl()
    share = 1.0
    for _ in range(tries):
        at = 0
        for parameter, old in zip(parameters, before, strict=True):
            count = parameter.numel()
            parameter.copy_(old + share * step[at : at + count].view_as(parameter))
            at += count
        loss, kl = loss_and_kl()
        if kl <= delta and loss < start:
            return share, kl
        share /= 2
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(old)
    return 0.0, 0.0
