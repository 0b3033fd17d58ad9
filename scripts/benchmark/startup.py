"""How soon a real `rlhf train` samples its first response: `python scripts/benchmark/startup.py [overrides]`.

Prints the seconds of the imports of torch and transformers' Qwen2, and from their end to the first rollout. Caches
should be warm (the miniatures built, the prefixes labelled): run it twice.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

begun = time.perf_counter()
import torch  # noqa: E402, F401
from transformers import Qwen2ForCausalLM  # noqa: E402

assert Qwen2ForCausalLM.__name__  # loads the module, which transformers puts off
imported = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> None:
    from rlhf_cli.cli import dispatch
    from rlhf_cli.training import validation

    def first(*_: Any, **__: Any) -> Any:
        print(f"imports of torch and Qwen2: {imported - begun:.1f} s")
        print(f"from there to the first rollout: {time.perf_counter() - imported:.1f} s")
        raise SystemExit(0)

    validation.generate = first
    folder = tempfile.mkdtemp()
    dispatch(["train", "scale=mini", "tracking=none", f"hydra.run.dir={folder}/run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
