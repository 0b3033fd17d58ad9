"""A copy of a model folder whose weights lie unaligned in their file: `scripts/kill_anywhere.py` makes it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from kill_anywhere import unaligned as unaligned
