"""The device and the dtype of a run."""

import ctypes
import os
import time
from dataclasses import dataclass

import torch

from rlhf_cli.config.errors import UserError
from rlhf_cli.engine import processes as distributed
from rlhf_cli.engine.casts import factors_in


@dataclass(frozen=True)
class Compute:
    """Where and in which dtype forward passes run; master weights are float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def compute(device: str, precision: str) -> Compute:
    """`device`: auto, cpu, cuda or cuda:n; `precision`: auto, fp32 or bf16. Raises UserError where no such GPU is."""
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and distributed.world() > 1:
        name = str(distributed.local_device())
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device}: torch sees no CUDA GPU here (use device=cpu or device=auto)")
    bf16 = precision == "bf16" or (precision == "auto" and name.startswith("cuda") and _has_bf16_unit())
    if name == "cpu":
        keep_freed_memory()
    elif name.startswith("cuda"):  # cuDNN plans each new shape: 70 ms for a reward model's batch on an H100
        torch.backends.cuda.enable_cudnn_sdp(False)
    return Compute(torch.device(name), torch.bfloat16 if bf16 else torch.float32)


def _has_bf16_unit() -> bool:
    """Emulated, as on GPUs before Ampere, bfloat16 is slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def bf16_gain(*, rounding: bool, budget: float = 0.2) -> float:
    """How many times as fast as in float32 a layer-sized product is in bfloat16 on the CPU, in this process's threads.

    `rounding`: of float32 matrices that the product rounds, as `precision=bf16` has it; else of bfloat16 ones. A CPU
    without a unit takes a second for one, so at most `budget` seconds and two products go into each.
    """

    def seconds(dtype: torch.dtype, factors: torch.dtype) -> float:
        a, b = (torch.ones(n, 512, dtype=dtype) for n in (512, 1024))
        found: list[float] = []
        with factors_in(factors):
            while len(found) < 2 or sum(found) < budget:
                begin = time.perf_counter()
                torch.mm(a, b.T)
                found.append(time.perf_counter() - begin)
        return min(found)

    lowered = torch.float32 if rounding else torch.bfloat16
    return seconds(torch.float32, torch.float32) / seconds(lowered, torch.bfloat16)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's mallopt (malloc.h)."""


def keep_freed_memory() -> None:
    """Let the C library use freed memory again instead of handing it to the system, which would map and zero it afresh
    for the next step's activations and gradients. Where the library is not glibc, or the user set it up in the
    environment (MALLOC_…_), nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
