"""The benchmark's side of `rlhf` still runs: its forced lengths are what the training step sees."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS / "benchmark"))


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_step_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
    import shapes
    import worker_rlhf

    from rlhf_cli.engine import sample as sampling

    tiny = shapes.Shape((16, 1, 2, 2, 32, 64), (16, 1, 2, 32), {}, {"ppo": 64, "grpo": 64})
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/gpu.py; a dataclass asks for its module by name."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPTS / "gpu.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", made)
    spec.loader.exec_module(made)
    return made


def bench(gpu: ModuleType, folder: Path, steps: int) -> tuple[object, list[list[str]]]:
    """A bench on a card of known speed, whose runs are written down instead of made."""
    import shapes

    asked: list[list[str]] = []

    class Written(gpu.Bench):
        def call(self, words: list[str], log: str) -> int:
            asked.append(words)
            (self.out / log).write_text("the last line", encoding="utf-8")
            run = Path(next(word for word in words if word.startswith("hydra.run.dir=")).partition("=")[2])
            run.mkdir()
            rows = [
                {
                    "step": at, "time/rollout_s": 9.0 if at < 3 else 0.5, "time/score_s": 0.0, "time/forward_s": 0.1,
                    "time/update_s": 2.0, "throughput/tokens_per_s": 100.0 * at, "train/logprob_mismatch": 0.01,
                    "train/response_length": 100.0, "train/kl": 0.25 * (at - 1), "memory/peak_mb": 1024.0 * at,
                }
                for at in range(1, steps + 1)
            ]  # fmt: skip
            lines = [json.dumps({"step": 0, "val/score": 0.5}), *map(json.dumps, rows)]
            (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
            return 0 if steps else 1

    return Written(gpu.OPTIONS | {"out": str(folder)}, folder, folder, shapes, 1e9), asked


def test_the_gpu_script_reads_a_run(gpu: ModuleType, tmp_path: Path) -> None:
    made, asked = bench(gpu, tmp_path, 5)
    found = gpu.grpo(made, "NVIDIA H100 80GB HBM3")
    assert "algo=grpo" in asked[0]
    assert (found["exit"], found["steps"], found["KL at the first step"]) == (0, 5, 0.0)
    assert found["time/rollout_s"] == 0.5  # without the first two steps
    assert found["s a step"] == pytest.approx(2.6)
    assert found["peak GB"] == 5.0
    # Qwen2.5-0.5B: 357,826,560 weights in the layers' matrices, 136,134,656 in the head; 100 tokens a row of 64
    weights = 357_826_560 + 136_134_656
    assert found["share of bandwidth"] == pytest.approx(2 * weights * 100 / 0.5 / 3.35e12)
    assert found["share of bf16 peak"] == pytest.approx(6 * weights * 64 * 100 / 2 / 989e12)
    assert 5 < found["computed GB"] < 40
    both = gpu.ppo(made, "NVIDIA H100 80GB HBM3")
    more = 2 * (2 * 357_826_560 + 136_134_656) / weights  # two epochs, and a critic's trunk
    assert both["share of bf16 peak"] == pytest.approx(more * found["share of bf16 peak"])


def test_a_run_that_fails_is_told(gpu: ModuleType, tmp_path: Path) -> None:
    made, _ = bench(gpu, tmp_path, 0)
    assert gpu.grpo(made, "a CPU") == {"exit": 1, "said": "the last line"}


@pytest.mark.parametrize("words", [["speed=1"], ["parts=tests,all"]])
def test_the_gpu_script_says_what_it_takes(
    gpu: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    assert gpu.main() == 2
    assert "there is no such" in capsys.readouterr().err
