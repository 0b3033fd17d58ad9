"""`scale=auto`: full where a CUDA GPU can be used, mini where not. Answers without importing torch."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def detected_scale() -> str:
    return "full" if _torch_has_cuda() and _gpus() > 0 else "mini"


def _torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, read from its version file (importing it takes seconds)."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).parent / "version.py"
    return version.exists() and "cuda: Optional[str] = '" in version.read_text(encoding="utf-8").replace('"', "'")


def _gpus() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
