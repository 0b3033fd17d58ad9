"""Figures in a style of our own, whatever the user's matplotlib is set up for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def drawing(**options: Any) -> Iterator[Any]:
    """pyplot inside, drawing to files: a notebook's MPLBACKEND and a matplotlibrc's LaTeX are left out. `options`: of
    rcParams, with _ for the dot."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    ours: Any = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "interactive"))}
    ours |= {key.replace("_", ".", 1): value for key, value in options.items()}
    with mpl.rc_context(ours):
        yield pyplot
