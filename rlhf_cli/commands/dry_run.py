"""rlhf train --dry-run: the checked config and what it will take, without a model or a folder."""

import socket
from pathlib import Path
from typing import Any

from rlhf_cli.config.compose import Plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.flat import flat, nested

SHAPE = (
    "scale", "device", "precision", "shard", "actor", "critic", "reward", "gold", "data", "prompt", "rollout", "val",
    "algo.name", "algo.advantage", "algo.group_size", "algo.epochs", "algo.minibatches", "algo.update", "algo.ptx",
    "algo.filter", "optim.micro_batch_size", "optim.gradient_checkpointing",
)  # fmt: skip
"""What the time of a step hangs on; learning rates, coefficients and seeds are not among it."""


def show(plan: Plan, *, swept: bool) -> int:
    """Print the config as YAML and the estimate as comments behind it, so that the whole is a YAML file."""
    import yaml

    first, *others = [job.model_dump(by_alias=True) for job in plan.jobs]
    if others:  # what all jobs have in common
        leaves = [flat(other) for other in others]
        first = nested({k: v for k, v in flat(first).items() if all(other.get(k, ...) == v for other in leaves)})
    print(yaml.safe_dump(first, sort_keys=False, allow_unicode=True), end="")
    print("\n".join(f"# {line}" for line in account(plan, swept=swept)))
    return 0


def account(plan: Plan, *, swept: bool) -> list[str]:
    """What the jobs will take, a line each."""
    lines = [f"dry run: no model was loaded, no folder made; it would go to {where_to(plan, swept=swept)}"]
    if len(plan.jobs) > 1:
        lines.append(f"{len(plan.jobs)} jobs; what differs between them:")
        lines += [f"  {number}: {' '.join(typed)}" for number, typed in enumerate(plan.overrides[:MOST])]
        lines += [f"  … and {len(plan.jobs) - MOST} more"] if len(plan.jobs) > MOST else []
    elif swept and "BasicSweeper" not in plan.sweeper:
        lines.append(f"jobs are proposed as results come in, by {plan.sweeper}; this is what one of them takes")
    takes = [work(job, begun_at(job, plan.run_dir)) for job in plan.jobs]
    total = {key: sum(each[key] for each in takes) for key in takes[0]}
    lines.append(
        f"{counted(total['steps'], 'training step')} · {counted(total['rollouts'], 'rollout')}, at most "
        f"{total['tokens']:,} tokens sampled · {counted(total['updates'], 'optimizer step')}"
    )
    lines.append(
        f"{counted(total['validations'], 'validation')}, {counted(total['judged'], 'response')} in all, at most "
        f"{total['judged_tokens']:,} tokens · at least {counted(total['checkpoints'], 'checkpoint')}"
    )
    return [*lines, f"memory: {memory_of(plan.jobs)}", f"time: {time_of(plan.jobs, [each['steps'] for each in takes])}"]


MOST = 20
"""Jobs that are named."""


def where_to(plan: Plan, *, swept: bool) -> str:
    resumed = plan.jobs[0].resume
    if resumed not in (None, "auto"):
        return str(resumed)
    return plan.sweep_dir if swept else plan.run_dir


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def work(job: Any, begun: int = 0) -> dict[str, int]:
    """Steps, rollouts, tokens and the rest of one job; `begun`: the step of the checkpoint that it goes on from."""
    steps = max(0, job.steps - begun)
    rollouts, longest = steps * job.rollout.batch_size, job.rollout.max_response_length
    passes = job.algo.epochs * job.algo.minibatches if job.algo.update == "gradient" else 1
    due = {step for step in range(begun + 1, job.steps + 1) if _due(step, job.val.every)} | {job.steps}
    judged = len(due | {0} if not begun else due if steps else set())
    saved = {step for step in range(begun + 1, job.steps + 1) if _due(step, job.checkpoint.every)} | {job.steps}
    return {
        "steps": steps,
        "rollouts": rollouts,
        "tokens": rollouts * longest,
        "updates": steps * passes,
        "validations": judged,
        "judged": judged * job.val.prompts,
        "judged_tokens": judged * job.val.prompts * longest,
        "checkpoints": len(saved) if steps else 0,
    }


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def begun_at(job: Any, run_dir: str) -> int:
    """The step of the checkpoint that a resumed run goes on from; 0 for a new one."""
    folder = Path(run_dir if job.resume == "auto" else job.resume or "").expanduser()
    if not job.resume or not folder.is_dir():
        return 0
    from rlhf_cli.runs.checkpoint import newest, step_of

    found = newest(folder, lambda text: None)
    return step_of(found) if found else 0


def memory_of(jobs: list[Any]) -> str:
    """Of the jobs, the one that wants most says it."""
    from rlhf_cli.commands.doctor_memory import memory, planned

    said: dict[str, None] = {}
    for job in jobs:
        try:
            finding = memory(job, planned(job))
        except UserError as error:
            return f"not known: {error}"
        said[finding.seen + (f"; {finding.fix}" if finding.fix else "")] = None
    return " | ".join(list(said)[:3]) + (f" | … {len(said) - 3} more" if len(said) > 3 else "")


def time_of(jobs: list[Any], steps: list[int]) -> str:
    """`steps`: of each job. From finished runs of the same shape on this machine, else that it is not known."""
    known = finished_here(Path("outputs"))
    seconds, like = 0.0, set()
    for job, count in zip(jobs, steps, strict=True):
        found = next((run for run in known if run[0] == shape_of(job.model_dump(by_alias=True))), None)
        if found is None and count:
            return "not known: no finished run of this shape is below outputs/ on this machine"
        if found:
            seconds += count * found[1]
            like.add(found[2])
    if not like:
        return "nothing is left to do"
    others = f" and {len(like) - 1} more" if len(like) > 1 else ""
    one_by_one = ", one job after the other" if len(jobs) > 1 else ""
    return f"about {duration(seconds)}, at the pace of {min(like)}{others}{one_by_one}"


def shape_of(config: dict[str, Any]) -> dict[str, Any]:
    """Of a config, what the time of a step hangs on."""
    return {k: v for k, v in flat(config).items() if any(k == part or k.startswith(f"{part}.") for part in SHAPE)}


def finished_here(root: Path) -> list[tuple[dict[str, Any], float, str]]:
    """(shape, seconds a step with all that belongs to it, folder) of the runs that are done, the newest first."""
    from rlhf_cli.config.compose import saved_config
    from rlhf_cli.runs.catalogue import run_folders
    from rlhf_cli.runs.status import read_status

    found = []
    for folder in run_folders(root) if root.is_dir() else ():
        status = read_status(folder)
        if status.get("state") != "done" or status.get("host") != socket.gethostname() or not status.get("step"):
            continue
        try:
            saved = saved_config(folder)
        except UserError:
            continue
        if {"reward_train", "classifier_train"} & saved.keys():  # their steps are other ones
            continue
        pace = status.get("seconds", 0.0) / status["step"]
        if pace:
            found.append((status["heartbeat"], shape_of(saved), pace, str(folder)))
    return [(shape, pace, folder) for _, shape, pace, folder in sorted(found, key=lambda run: -run[0])]


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
