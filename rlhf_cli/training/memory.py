"""Peak memory of this process."""

import resource

import torch


def peak_mb(device: torch.device) -> float:
    """MB: allocated on a CUDA device, else the resident set (ru_maxrss is in kB on Linux, bytes on macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import sys

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
