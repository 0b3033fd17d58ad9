"""`rlhf`: reinforcement learning from human feedback, run from the shell."""

__version__ = "0.2.0"
