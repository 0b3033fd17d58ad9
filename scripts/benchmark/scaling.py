"""How a step's cost grows with response length, batch, group and vocabulary: `python scripts/benchmark/scaling.py`.

CPU seconds of the second and third step (the smaller), one thread, GRPO on the mini shape; the exponent is the slope of
the last three points on logarithmic axes. 1 is proportional.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import shapes
import worker_rlhf

AXES: dict[str, list[int]] = {
    "response length": [12, 24, 48, 96, 192],
    "batch": [16, 32, 64, 128],
    "group size": [2, 4, 8, 16, 32],
    "vocabulary": [1000, 4000, 16000, 64000],
}


def cost(work: Path, axis: str, value: int) -> dict[str, float]:
    """CPU seconds of a step, and the seconds of its phases."""
    from rlhf_cli.engine import sample as sampling
    from rlhf_cli.training.clock import clock

    length = value if axis == "response length" else shapes.RESPONSE
    batch = value if axis == "batch" else shapes.SEQUENCES
    group = value if axis == "group size" else shapes.GROUP
    mini = shapes.SHAPES["mini"]
    vocabulary = value if axis == "vocabulary" else mini.actor[-1]
    name = f"mini-{vocabulary}"
    shapes.SHAPES[name] = replace(mini, actor=(*mini.actor[:-1], vocabulary))
    folder = shapes.make(name, work / name)
    sizes = [f"rollout.batch_size={batch}", f"rollout.micro_batch_size={batch}", f"algo.group_size={group}"]
    made = worker_rlhf.make_experiment(
        folder, name, "grpo", "fp32", 0, [*sizes, f"rollout.max_response_length={length}"]
    )
    before = sampling.uniforms, sampling.draw
    worker_rlhf.force([length] * batch, True)
    seconds: list[float] = []
    for step in range(1, 4):
        start = time.process_time()
        with clock() as phases:
            made.step(step)
        seconds.append(time.process_time() - start)
    sampling.uniforms, sampling.draw = before
    return {"cpu": min(seconds[1:])} | {k[5:-2]: v for k, v in phases.items()}


def exponent(xs: list[int], ys: list[float]) -> float:
    """Slope of the last three points on logarithmic axes, by least squares."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)][-3:]
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def plot(results: dict[str, Any], out: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(13, 3.2), sharey=True, layout="constrained")
    for panel, (axis, found) in zip(panels, results.items(), strict=True):
        panel.loglog(found["values"], found["cpu"], "o-", color="#0072B2")
        panel.set_title(f"{axis}: exponent {found['exponent']:.2f}", fontsize=10)
        panel.set_xticks(found["values"], [str(v) for v in found["values"]])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("CPU seconds a step")
    ticks = [0.25, 0.5, 1, 2, 4, 8]
    panels[0].set_yticks(ticks, [str(t) for t in ticks])
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="/tmp/rlhf_benchmark", type=Path)
    parser.add_argument("--out", default="scaling", help="writes <out>.json and <out>.png")
    parser.add_argument("--plot-only", action="store_true", help="draw <out>.json again")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    if given.plot_only:
        plot(json.loads(Path(f"{given.out}.json").read_text(encoding="utf-8")), f"{given.out}.png")
        return
    for axis, values in AXES.items():
        found = [cost(given.work, axis, value) for value in values]
        cpu = [f["cpu"] for f in found]
        results[axis] = {"values": values, "cpu": cpu, "exponent": exponent(values, cpu), "points": found}
        print(
            f"{axis:16} exponent {results[axis]['exponent']:.2f}  " + "  ".join(map("{}: {:.2f}".format, values, cpu))
        )
    Path(f"{given.out}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    plot(results, f"{given.out}.png")


if __name__ == "__main__":
    main()
