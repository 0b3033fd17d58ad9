"""Reference numbers that other libraries computed (tests/data/vectors.json): each passes, or stands in REFUSED."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import vectors

DATA = Path(__file__).parent / "data" / "vectors.json"
CASES: list[dict[str, Any]] = json.loads(DATA.read_text())["cases"]

REFUSED = {
    "trl_ppo_rollout_block/l0.95_wr0": vectors.PAST_THE_END,
    "trl_ppo_rollout_block/l0.95_wr1": vectors.PAST_THE_END,
    "grpo_advantage/singleton_std": vectors.SINGLETON,
}
"""What this project does differently on purpose, and why."""


def flatten(value: Any) -> list[float]:
    return [leaf for item in value for leaf in flatten(item)] if isinstance(value, list) else [float(value)]


def differences(case: dict[str, Any]) -> dict[str, float]:
    """Largest absolute difference of each expected output, per-token ones where the mask is 1; inf for one missing."""
    out, mask = vectors.run(case), torch.tensor(case["inputs"].get("mask") or [])
    found = {}
    for name, value in case["expected"].items():
        if name not in out:
            found[name] = float("inf")
            continue
        expected, got = torch.tensor(flatten(value), dtype=torch.float64), out[name].detach().double().flatten()
        gap = (got - expected).abs()
        if mask.numel() and out[name].shape == mask.shape:
            gap = gap[mask.flatten() == 1]
        found[name] = float(gap.nan_to_num(nan=float("inf")).max())
    return found


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vector(case: dict[str, Any]) -> None:
    if case["name"] in REFUSED:
        with pytest.raises(NotImplementedError) as refusal:
            vectors.run(case)
        assert str(refusal.value) == REFUSED[case["name"]]
        return
    assert all(gap <= case["atol"] for gap in differences(case).values()), differences(case)


def test_every_refusal_is_a_case() -> None:
    assert set(REFUSED) <= {case["name"] for case in CASES}


def test_full_length_rows_agree_with_trl() -> None:
    """Where a response fills its row, TRL's place for the score is the last token too."""
    case = next(case for case in CASES if case["name"] == "trl_ppo_rollout_block/l0.95_wr0")
    first = {name: value[:1] for name, value in case["inputs"].items()}
    out = vectors.run(case | {"inputs": first})
    for name in ("rewards", "returns"):
        expected = torch.tensor(case["expected"][name][:1], dtype=torch.float64)
        torch.testing.assert_close(out[name], expected, atol=case["atol"], rtol=0)
