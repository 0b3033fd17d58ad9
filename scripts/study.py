"""The whole study: every part's runs (a run that two parts share is run once), the probe, the comparison, the page.

    python scripts/study.py study=quick              headline comparisons with 3 seeds, the rest with 1; in miniature
                                                     35 steps a run (scores level off by 20), three values a knob
    python scripts/study.py study=whole              3 seeds everywhere; says first how long it will take
    python scripts/study.py study=quick parts=reward_models,sweep_beta out=outputs/mine jobs=2 scale=mini
    python scripts/study.py scale=small data.source=reviews.jsonl   parts for SmolLM2-135M, one seed (whole: two)

Interrupted, the same command goes on where it stopped: what is done is not run again.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.flat import flat
from rlhf_cli.config.scale import detected_scale
from rlhf_cli.runs.status import read_status
from rlhf_cli.sweeps.sweep import config_hash

HEADLINES = ("base_vs_instruct", "reward_models")
PARTS = (
    *HEADLINES, "ngram_penalty", "prefix_length", "algorithms", "sweep_beta", "sweep_epsilon", "sweep_lambda",
)  # fmt: skip
KNOWN = (*PARTS, "reading")
QUICK = {
    "sweep_beta": ["algo.beta=0,0.03,0.3"],
    "sweep_epsilon": ["algo.epsilon=0.05,0.2,0.5"],
    "sweep_lambda": ["algo.lambda=0.8,0.95,1.0"],
}
SMALL_PARTS = ("reward_models", "sweep_beta", "algorithms", "ngram_penalty", "reading")
SMALL = {
    "reward_models": ["reward=vader,minilm_weak,minilm"],
    "sweep_beta": ["algo.beta=0,0.01,0.03"],
    "algorithms": ["algo=ppo,grpo"],
    "ngram_penalty": ["reward=minilm", "penalty={weight:0.0,n:3},{weight:1.0,n:3}", "algo.beta=0"],
}
"""On a real small model: one seed, or with study=whole two; each run is a quarter of an hour and more."""
QUICK_MINI = ["steps=35", "val.every=7"]
"""The learning rate comes to 0 at a run's end, whatever its steps, so a shorter one is whole, too."""
OPTIONS = {"study": "quick", "scale": "auto", "out": "", "parts": "", "jobs": ""}


@dataclass(frozen=True)
class Job:
    """One training run: what is typed for it, where it goes."""

    overrides: list[str]
    folder: Path
    steps: int

    @property
    def done(self) -> bool:
        status = read_status(self.folder)
        return status.get("state") == "done" and status.get("step") == self.steps


def jobs_of(parts: list[str], study: str, scale: str, out: Path, extra: list[str]) -> list[Job]:
    """Every run of these parts once, in the order in which the parts come to it."""
    found: dict[str, Job] = {}
    for part in parts:
        typed = [f"experiment={part}", f"scale={scale}", "tracking=none"]
        if scale == "small":
            typed += SMALL.get(part, [])
        elif study == "quick":
            typed += QUICK.get(part, []) + (QUICK_MINI if scale == "mini" else [])
        typed += extra
        if study == "whole":
            typed.append("seed=0,1" if scale == "small" else "seed=0,1,2")
        elif scale == "small" or part not in HEADLINES:
            typed.append("seed=0")
        planned = plan("train", typed, multirun=True, config_dir=None)
        for overrides, config in zip(planned.overrides, planned.jobs, strict=True):
            key = config_hash(flat(config.model_dump(by_alias=True)))
            told = [o.partition("=")[2] for o in overrides if o not in typed or o.startswith("seed=")]
            name = re.sub(r"[^\w.-]+", "_", "_".join(told)).strip("_")[:60]
            found.setdefault(key, Job(overrides, out / "runs" / f"{name}_{key[:6]}", config.steps))
    return list(found.values())


def call(*words: str, threads: int, quiet: bool = True) -> int:
    """`rlhf …` in a process of its own; Ctrl-C reaches it too, and it saves."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    sink = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *words], env=environment, stdout=sink, stderr=sink, text=True, check=False
    )
    if quiet and done.returncode not in (0, 130, 143):
        print(
            f"\nrlhf {shlex.join(words)}: exit code {done.returncode}\n{(done.stderr or '')[-2000:]}", file=sys.stderr
        )
    return done.returncode


def estimate(job: Job, count: int, jobs: int, threads: int) -> float:
    """Seconds for `count` runs like this one: from a trial of a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for steps in (1, 4):
            start = time.monotonic()
            call(
                "train", *job.overrides, f"steps={steps}", "val.every=0", f"hydra.run.dir={folder}/{steps}",
                threads=threads,
            )  # fmt: skip
            seconds.append(time.monotonic() - start)
    return (seconds[0] + max(0.0, seconds[1] - seconds[0]) / 3 * job.steps) * count / jobs


def run_all(jobs: list[Job], workers: int, threads: int, console: Console) -> int:
    """Run what is missing, `workers` at a time; how many failed."""
    missing = [job for job in jobs if not job.done]
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    failed = 0
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("runs", total=len(missing))
        started = {
            pool.submit(
                call, "train", *job.overrides, "resume=auto", f"hydra.run.dir={quoted(job.folder)}", threads=threads
            ): job
            for job in missing
        }
        try:
            for future in as_completed(started):
                code, job = future.result(), started[future]
                failed += code != 0
                progress.console.print(f"{'done' if code == 0 else f'exit code {code}'}: {job.folder}", markup=False)
                progress.advance(bar)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


def quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"


def main(argv: list[str]) -> int:
    typed = dict(word.split("=", 1) for word in argv if "=" in word)
    words = [word for word in argv if "=" not in word]
    if words:
        print(__doc__)
        return 0 if words[0] in ("-h", "--help", "help") else 2
    options = OPTIONS | {key: value for key, value in typed.items() if key in OPTIONS}
    extra = [f"{key}={value}" for key, value in typed.items() if key not in OPTIONS]
    if options["scale"] == "auto":
        options["scale"] = detected_scale()
    parts = [part for part in options["parts"].split(",") if part]
    parts = parts or list(SMALL_PARTS if options["scale"] == "small" else PARTS)
    if options["study"] not in ("quick", "whole") or (unknown := [part for part in parts if part not in KNOWN]):
        wrong = f"parts={unknown[0]}" if options["study"] in ("quick", "whole") else f"study={options['study']}"
        print(f"{wrong}: allowed are study=quick, study=whole and parts out of {', '.join(KNOWN)}", file=sys.stderr)
        return 2
    console, out = Console(), Path(options["out"] or f"outputs/study_{options['study']}")
    try:
        jobs = jobs_of(parts, options["study"], options["scale"], out, extra)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    missing = [job for job in jobs if not job.done]
    cores, gpu = os.cpu_count() or 1, has_gpu()
    workers = int(options["jobs"] or (1 if gpu else min(cores, 4)))
    threads = max(1, cores // workers)
    console.print(
        f"{len(jobs)} runs of {len(parts)} parts, {len(jobs) - len(missing)} of them done; {workers} at a time"
    )
    # miniatures and prompts once, before several runs want them
    for data in ("short_prefix", "long_prefix"):
        if missing and (code := call("data", f"data={data}", f"scale={options['scale']}", *extra, threads=cores)):
            return code
    if missing and call("models", f"scale={options['scale']}", *extra, threads=cores):
        return 1
    if (options["study"] == "whole" or options["scale"] == "small") and missing:
        minutes = estimate(missing[0], len(missing), workers, threads) / 60
        console.print(f"about {minutes:.0f} minutes on this machine (Ctrl-C and the same command: it goes on)")
    start = time.monotonic()
    failed = run_all(jobs, workers, threads, console)
    first = next((job for job in jobs if job.done and "seed=0" in job.overrides), None)
    if not (out / "probe" / "probe.json").exists():
        call("probe", f"scale={options['scale']}", f"hydra.run.dir={quoted(out / 'probe')}", threads=cores)
    if first and not (out / "compare" / "compare.json").exists():
        call("compare", str(first.folder), f"hydra.run.dir={quoted(out / 'compare')}", threads=cores)
    console.print(f"{len(missing) - failed} runs in {(time.monotonic() - start) / 60:.0f} minutes, {failed} failed")
    code = call("report", str(out), f"out={quoted(out / 'page')}", "title='The study'", threads=cores, quiet=False)
    return code or int(failed > 0)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
