"""A CPU that passes for a GPU: what a GPU would refuse raises, and each wait of the host for it is counted.

Tensors carry the pretence on their storage: True (on the GPU), False (made on the CPU by Python code), None (made
inside torch, from neither). They report `cuda:0` as their device, so our code takes a GPU's way; the numbers are
computed by the CPU's kernels. What it cannot show: speed, a CUDA kernel's own rounding, and its limits of shape and
alignment.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
FACTORIES = ("empty", "zeros", "ones", "full", "arange", "tensor", "rand", "randn", "eye", "linspace")
TAKES_BOTH = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that may be given CPU tensors beside GPU tensors: they copy them."""
READS_BACK = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal",
}  # fmt: skip
"""Their result, or its shape, is known when the GPU has computed it."""
NO_SCALARS = {
    "mm", "bmm", "addmm", "cat", "gather", "scatter_add_", "index_select", "index_copy_", "index_add_", "embedding",
    "searchsorted",
}  # fmt: skip
"""Not even a number (0-dim) may come from the CPU."""


class Refused(RuntimeError):
    """A GPU would refuse this."""


def on_gpu(x: Tensor) -> bool:
    return _told(x) is True


def put(x: Tensor, gpu: bool | None = True) -> Tensor:
    """Tag a tensor's storage."""
    x.untyped_storage().gpu = gpu  # type: ignore[attr-defined]
    return x


def _told(x: Tensor) -> bool | None:
    return getattr(x.untyped_storage(), "gpu", None)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class Watch(TorchDispatchMode):
    """`waits`: how often the host waited, by file and line of ours. `ops`: operations on GPU tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.capturing = False
        """A CUDA graph is being recorded: no wait is allowed."""

    def wait(self, what: str) -> None:
        if self.capturing:
            raise Refused(f"{what} while a graph is recorded")
        ours = [f for f in traceback.extract_stack() if "/rlhf_cli/" in f.filename]
        where = f"{ours[-1].filename.rpartition('/rlhf_cli/')[2]}:{ours[-1].lineno} " if ours else ""
        self.waits[where + what] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        gpu, cpu = [t for t in tensors if on_gpu(t)], [t for t in tensors if _told(t) is False]
        if gpu:
            self.ops[str(func)] += 1
            self._judge(func, args, gpu, cpu)
            if (product := _mixed_product(func, args, kwargs)) is not None:
                return put(product)
        out = func(*args, **kwargs)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                put(t, True if gpu else False if cpu else None)
        return out

    def _judge(self, func: Any, args: Any, gpu: list[Tensor], cpu: list[Tensor]) -> None:
        name = func._schema.name.split("::")[1]
        arrays = [t for t in cpu if t.ndim]
        by_mask = (
            name in TAKES_BOTH and "index" in name and any(i is not None and i.dtype == torch.bool for i in args[1])
        )
        crosses = name in TAKES_BOTH and (arrays or (cpu and name == "copy_"))
        if name in READS_BACK or by_mask or crosses:
            self.wait(name)
        if name not in TAKES_BOTH and cpu and (arrays or name in NO_SCALARS):
            raise Refused(f"{func}: {[(*t.shape, _told(t)) for t in gpu + cpu]}")


def _mixed_product(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """bfloat16 × bfloat16 to float32, which CUDA has and the CPU has not."""
    name = func._schema.name.split("::")[1]
    if name not in ("mm", "bmm") or "dtype" not in func._overloadname:
        return None
    a, b, wanted = args
    if not (a.dtype == b.dtype and a.dtype.itemsize == 2 and wanted == torch.float32):
        raise Refused(f"{func}: {a.dtype} and {b.dtype} to {wanted}")
    product = getattr(torch.ops.aten, name)(a.float(), b.float())
    return kwargs["out"].copy_(product) if "out" in kwargs else product


@contextmanager
def pretend(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Inside, `.to("cuda")` and `device="cuda"` make such tensors; yields what was seen. Switches it off again."""
    watch = Watch()
    with patch.context() as inner:
        _tensors(inner, watch)
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            inner.setattr(torch, name, _on_the_cpu(getattr(torch, name)))
        real = torch.autocast

        class Autocast(real):  # type: ignore[misc, valid-type]
            def __init__(self, kind: str, *args: Any, **more: Any) -> None:
                super().__init__("cpu" if kind == "cuda" else kind, *args, **more)

        inner.setattr(torch, "autocast", Autocast)
        with watch:
            yield watch


def _on_the_cpu(ask: Callable[..., Any]) -> Callable[..., Any]:
    return lambda kind=None: ask("cpu" if kind in (None, "cuda") else kind)


def _tensors(patch: pytest.MonkeyPatch, watch: Watch) -> None:
    device, to, tolist, module_to = Tensor.device.__get__, Tensor.to, Tensor.tolist, torch.nn.Module.to

    def maker(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, device: Any = None, **more: Any) -> Tensor:
            where = {} if _is_gpu(device) else {"device": device}
            return put(make(*args, **more, **where), _is_gpu(device))

        return made

    def moved(x: Tensor, *args: Any, **more: Any) -> Tensor:
        places = (torch.device, str, Tensor)
        to_where = [
            a.device if isinstance(a, Tensor) else a for a in (*args, more.pop("device", None)) if isinstance(a, places)
        ]
        if like := [a for a in args if isinstance(a, Tensor)]:
            more["dtype"] = like[0].dtype
        rest = [a for a in args if not isinstance(a, places)]
        later = more.pop("non_blocking", False)
        out = to(x, *rest, **more) if rest or more else x
        if not to_where or _is_gpu(to_where[0]) == on_gpu(x):
            return out
        if on_gpu(x) and not later:
            watch.wait("to the CPU")
        return put(out.clone(), _is_gpu(to_where[0]))

    def whole(module: torch.nn.Module, *args: Any, **more: Any) -> torch.nn.Module:
        if not any(_is_gpu(a) for a in args if isinstance(a, torch.device | str)):
            return module_to(module, *args, **more)
        return module.apply(lambda m: [put(t) for t in (*m.parameters(False), *m.buffers(False))] and None)

    def listed(x: Tensor) -> Any:
        if on_gpu(x):
            watch.wait("tolist")
        return tolist(x)

    for name in FACTORIES:
        patch.setattr(torch, name, maker(getattr(torch, name)))
    patch.setattr(Tensor, "device", property(lambda x: GPU if on_gpu(x) else device(x)), raising=False)
    patch.setattr(Tensor, "is_cuda", property(on_gpu), raising=False)
    patch.setattr(Tensor, "to", moved)
    patch.setattr(Tensor, "cpu", lambda x: moved(x, "cpu"))
    patch.setattr(Tensor, "tolist", listed)
    patch.setattr(torch.nn.Module, "to", whole)
