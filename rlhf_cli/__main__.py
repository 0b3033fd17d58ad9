"""`python -m rlhf_cli …` is `rlhf …` (what torchrun needs)."""

from rlhf_cli.cli import main

if __name__ == "__main__":
    main()
