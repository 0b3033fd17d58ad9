"""The benchmark's side of `rlhf` still runs: its forced lengths are what the training step sees."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "benchmark"))


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_step_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
    import shapes
    import worker_rlhf

    from rlhf_cli.engine import sample as sampling

    tiny = shapes.Shape((16, 1, 2, 2, 32, 64), (16, 1, 2, 32, 64), {}, {"ppo": 64, "grpo": 64})
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    for name in ("uniforms", "draw"):
        monkeypatch.setattr(sampling, name, getattr(sampling, name))  # put back after the forced ones
    folder = shapes.make("tiny", tmp_path)
    lengths = json.loads((folder / "work.json").read_text())["lengths"]["natural"]
    assert max(lengths) == shapes.RESPONSE
    assert sum(lengths) / len(lengths) == pytest.approx(shapes.RESPONSE / 3, rel=0.02)
    made = worker_rlhf.make_experiment(folder, "tiny", algo, "fp32", 0, [])
    worker_rlhf.force(lengths, False)
    metrics, _ = made.step(1)
    assert metrics["train/response_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["train/eos_rate"] == 1
    assert metrics["train/logprob_mismatch"] < 1e-5
    assert metrics["train/score"] > 0
