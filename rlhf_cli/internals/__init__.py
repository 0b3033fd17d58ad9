"""What is private to the libraries that we use and truly needed: one file a library. `tests/test_internals.py` says
clearly what moved when a library does."""
