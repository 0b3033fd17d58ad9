"""NaN and infinity, noticed before they reach a weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.config.errors import RunFailed


class NonFinite(RunFailed):
    """`what` is NaN or infinite, in these rows of the batch where that is known. No weight was touched by it.

    `evidence`: what was at hand, for a dump.
    """

    def __init__(self, what: str, rows: list[int] | None = None, **evidence: Any) -> None:
        where = f" in {len(rows)} rows, the first is row {rows[0]}" if rows else ""
        super().__init__(f"{what} not finite{where}")
        self.what, self.rows, self.evidence = what, rows or [], evidence


@contextmanager
def evidence(**known: Any) -> Iterator[None]:
    """An error raised inside takes this along: a NonFinite, or what anomaly detection will make one of."""
    try:
        yield
    except Exception as error:
        vars(error)["evidence"] = known | vars(error).get("evidence", {})
        raise


def check_all_finite(named: dict[str, Tensor], mask: Tensor, **evidence: Any) -> None:
    """`check_finite` of each, with one look at the device where all is well."""
    if torch.stack([(~torch.isfinite(values) & mask).any() for values in named.values()]).any():
        for what, values in named.items():
            check_finite(what, values, mask, **evidence)


def check_finite(what: str, values: Tensor | None, mask: Tensor | None = None, **evidence: Any) -> None:
    """Raise NonFinite if a value (where the mask is set) is NaN or infinite; the first dimension is rows."""
    if values is None:
        return
    bad = ~torch.isfinite(values)
    if mask is not None:
        bad = bad & mask.bool()
    if bad.any():
        rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if bad.ndim else None
        raise NonFinite(what, rows, **evidence)
