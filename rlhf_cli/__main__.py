"""`python -m rlhf_cli …` is `rlhf …` (what torchrun needs)."""

import os
import sys

if sys.path[:1] == [os.getcwd()]:  # a user's statistics.py must not come before the standard library's
    sys.path.append(sys.path.pop(0))

from rlhf_cli.cli import main

if __name__ == "__main__":
    main()
