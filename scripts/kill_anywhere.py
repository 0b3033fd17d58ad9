"""SIGKILL runs anywhere, go on, and compare with a run that was never killed.

    python scripts/kill_anywhere.py --kills 100 --tears 10 --out outputs/kills scale=mini algo=grpo

Trailing arguments are overrides of `rlhf train`. Half of the kills come at a random moment, half while a checkpoint is
being written. After some kills the newest checkpoint is damaged by hand as well: a byte flipped, a file cut or deleted.
Every run must end with the metrics.jsonl and samples.jsonl of the one never killed, but for times and memory.
All start from a model whose weights lie unaligned in their file: see `unaligned`.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

NOT_COMPARED = ("time/", "throughput/", "memory/")
DEFAULTS = [
    "tracking=none", "steps=6", "val.every=2", "checkpoint.every=1", "data.train=30", "data.test=12", "val.prompts=6",
    "rollout.batch_size=16", "rollout.max_response_length=12", "optim.micro_batch_size=8",
]  # fmt: skip
DAMAGES = ("a byte flipped", "a file cut", "a file deleted")


def start(folder: Path, overrides: list[str]) -> int:
    """The pid of a training of its own, forked so that it need not import everything again; its words go to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    with (
        (folder.with_suffix(".log")).open("a", buffering=1, encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        from rlhf_cli.cli import dispatch

        code = dispatch(["train", *DEFAULTS, *overrides, f"hydra.run.dir={folder}", "resume=auto"])
    os._exit(code)


def record(folder: Path) -> tuple[list[dict], str]:
    """(metrics without times, samples) of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(NOT_COMPARED)} for row in rows]
    return kept, (folder / "samples.jsonl").read_text(encoding="utf-8")


def unaligned(model: Path, to: Path) -> Path:
    """A copy of a model folder, its weights float32 and 4 bytes past a 64-byte boundary of their file: who maps them
    has them aligned as a float and no better, and otherwise than those of a checkpoint that a run saves."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, to)
    file = to / "model.safetensors"
    save_file({name: weight.float() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size] + b" " * ((4 - 8 - size) % 64)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    return to


def start_unaligned(args: list[str], out: Path) -> list[str]:
    """Overrides that start from an unaligned copy of an actor, which a first run of one step leaves. It builds
    miniatures, too, where they are not there yet."""
    first = out / "first"
    if os.waitstatus_to_exitcode(os.waitpid(start(first, [*args, "steps=1"]), 0)[1]):
        sys.exit(f"the first run failed: {first}.log")
    return [*args, f"actor.path={unaligned(first / 'checkpoints' / 'step_000001' / 'actor', out / 'actor')}"]


def kill(pid: int, folder: Path, rng: random.Random, *, seconds: float, writing: bool) -> str | None:
    """SIGKILL the training; where it was hit, or None if it ended first."""
    deadline = time.monotonic() + (rng.uniform(0, seconds) if not writing else seconds * 3)
    seen = 0
    wanted = rng.randint(1, 3)
    under_way = False
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        now = any((folder / "checkpoints").glob(".tmp_*"))
        if now and not under_way:
            seen += 1
            if writing and seen == wanted:
                time.sleep(rng.uniform(0, 0.05))
                break
        under_way = now
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    if os.WIFEXITED(os.waitpid(pid, 0)[1]):
        return None
    if any((folder / "checkpoints").glob(".tmp_*")):
        return "writing a checkpoint"
    return "in a step or between" if any((folder / "checkpoints").glob("step_*")) else "before the first checkpoint"


def damage(folder: Path, rng: random.Random) -> str | None:
    """Harm the newest checkpoint; its name, None if there is none."""
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    if not checkpoints:
        return None
    file = rng.choice([path for path in checkpoints[-1].rglob("*") if path.is_file() and path.stat().st_size])
    kind = rng.choice(DAMAGES)
    content = bytearray(file.read_bytes())
    if kind == DAMAGES[2]:
        file.unlink()
        return checkpoints[-1].name
    place = rng.randrange(len(content))
    if kind == DAMAGES[0]:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content if kind == DAMAGES[0] else content[:place])
    return checkpoints[-1].name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--tears", type=int, default=10, help="checkpoints damaged by hand")
    parser.add_argument("--kills-a-run", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/kills"))
    args, overrides = parser.parse_known_args()
    rng = random.Random(args.seed)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    with redirect_stdout(io.StringIO()):
        # what every training imports, once; nothing is computed here, so that forking is safe
        import transformers.models.qwen2.modeling_qwen2
        import transformers.models.roberta.modeling_roberta  # noqa: F401
    whole = args.out / "whole"
    overrides = start_unaligned(overrides, args.out)
    begin = time.monotonic()
    if os.waitstatus_to_exitcode(os.waitpid(start(whole, overrides), 0)[1]):
        sys.exit(f"the run that is never killed failed: {whole}.log")
    seconds = time.monotonic() - begin
    expected = record(whole)
    print(f"never killed: {len(expected[0])} lines in {seconds:.1f} s", flush=True)
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    torn, recognised, number = 0, 0, 0
    while sum(tried.values()) < args.kills or torn < args.tears:
        folder, hits, harmed = args.out / f"run_{number:03d}", [], set()
        number += 1
        while True:
            pid = start(folder, overrides)
            enough = len(hits) >= args.kills_a_run or sum(tried.values()) + len(hits) >= args.kills + args.tears
            if enough:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                break
            where = kill(pid, folder, rng, seconds=seconds, writing=rng.random() < 0.5)
            if where is None:
                code = 0
                break
            hits.append(where)
            if torn + len(harmed) < args.tears and rng.random() < 0.7 and (name := damage(folder, rng)):
                harmed.add(name)
        same = code == 0 and record(folder) == expected
        tried.update(hits)
        survived.update(hits if same else [])
        torn += len(harmed)
        log = folder.with_suffix(".log").read_text(encoding="utf-8")
        recognised += sum(f"{name} is torn or incomplete" in log for name in harmed)
        verdict = "the same" if same else f"DIFFERENT, exit code {code}, see {folder}.log"
        print(f"{folder.name}: {len(hits)} kills, {len(harmed)} checkpoints damaged, end {verdict}", flush=True)
        if same:
            shutil.rmtree(folder)
    print("\n| SIGKILL | tried | survived |\n|---|---|---|")
    for where in sorted(tried):
        print(f"| {where} | {tried[where]} | {survived[where]} |")
    print(f"| all | {sum(tried.values())} | {sum(survived.values())} |")
    print(f"\n| checkpoints damaged by hand | recognised |\n|---|---|\n| {torn} | {recognised} |")
    return int(survived != tried or recognised != torn)


if __name__ == "__main__":
    sys.exit(main())
