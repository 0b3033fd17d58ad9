"""rlhf doctor"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_cli import __version__
from rlhf_cli.commands.doctor_actor import examine_actor
from rlhf_cli.commands.doctor_findings import Finding, failed_step, packages
from rlhf_cli.commands.doctor_memory import memory

ROOM = {"mini": 1.0, "small": 6.0, "full": 80.0}
"""GB that a run, its checkpoints and its models want free."""


def run(cfg: DictConfig) -> None:
    """Look at everything that a run of this config needs and say what to fix. Raises RunFailed if there is anything."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.errors import RunFailed

    config = settle("doctor", cfg, list(HydraConfig.get().overrides.task))
    findings = list(examine(config))
    show(findings)
    to_fix = sum(finding.state == "fix" for finding in findings)
    if to_fix:
        raise RunFailed(f"doctor: {to_fix} of {len(findings)} to fix")


def print_json(config: Any) -> int:
    """The findings as one JSON object, for an issue or a script; 1 if there is anything to fix."""
    findings = list(examine(config))
    about = {finding.what: {"state": finding.state, "seen": finding.seen, "fix": finding.fix} for finding in findings}
    print(json.dumps({"rlhf": __version__, "findings": about}, indent=1, ensure_ascii=False))
    return int(any(finding.state == "fix" for finding in findings))


def examine(config: Any) -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("CPU", cpu_model())
    yield from packages()
    yield from devices(config)
    yield from disk(config)
    yield from hub(config)
    yield wandb(config)
    yield caches(config)
    yield training_step(config)
    if config.actor.path:
        yield from examine_actor(config)


def devices(config: Any) -> Iterator[Finding]:
    import torch

    from rlhf_cli.config.errors import UserError
    from rlhf_cli.config.scale import _gpus
    from rlhf_cli.engine.device import bf16_gain, compute

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield Finding(f"GPU {i}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available() and _gpus():
        yield Finding(
            "GPU", "the driver sees one, torch does not", "fix", "install a CUDA build of torch: https://pytorch.org"
        )
    try:
        where = compute(config.device, config.precision)
        yield Finding("device", f"{where.device}, {str(where.dtype).removeprefix('torch.')}, scale={config.scale}")
        yield memory(config, where)
        if where.device.type == "cpu":
            yield matrix_unit(where.dtype, bf16_gain(rounding=True))
    except UserError as error:
        yield Finding("device", str(error), "fix", "device=auto")
    if config.optim.name == "adamw_8bit":
        yield eight_bit()
    cores = os.cpu_count() or 1
    yield Finding("threads", f"{torch.get_num_threads()} of {cores} cores")


def eight_bit() -> Finding:
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.training.adamw8 import check_8bit

    try:
        check_8bit()
    except UserError:
        return Finding("8-bit AdamW", "bitsandbytes is not installed", "fix", 'pip install "rlhf[8bit]"')
    return Finding("8-bit AdamW", "bitsandbytes is installed")


def cpu_model() -> str:
    """As the system calls it: Linux's /proc/cpuinfo, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def matrix_unit(dtype: Any, gain: float) -> Finding:
    """`gain`: how many times as fast as in float32 a product is in bfloat16."""
    import torch

    seen = f"a product in bfloat16 takes {100 / gain:.0f} % of its time in float32"
    if 1 <= gain <= 1.5:
        seen += ": precision=bf16 gains little here"
    low = dtype == torch.bfloat16
    if gain > 1.5 and not low:
        return Finding("matrix unit", seen, "note", "precision=bf16 is faster here, the wider the model")
    if gain < 1 and low:
        return Finding("matrix unit", seen, "note", "precision=fp32 is faster here")
    return Finding("matrix unit", seen)


def disk(config: Any) -> Iterator[Finding]:
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.config.folders import check_writable

    for name, place, key in (("outputs", "outputs", "hydra.run.dir"), ("cache", config.cache_dir, "cache_dir")):
        try:
            check_writable(place, key)
        except UserError as error:
            yield Finding(f"disk: {name}", str(error), "fix", f"{key}=<a folder of yours>")
            continue
        folder = Path(place).expanduser().absolute()
        while not folder.exists():
            folder = folder.parent
        free, wanted = shutil.disk_usage(folder).free / 1e9, ROOM[config.scale]
        seen = f"{free:.1f} GB free for {place}"
        yield (
            Finding(f"disk: {name}", seen)
            if free > wanted
            else Finding(
                f"disk: {name}",
                seen,
                "fix",
                f"make room: scale={config.scale} wants about {wanted:g} GB, or set {key}=",
            )
        )


def hub(config: Any) -> Iterator[Finding]:
    """Whether the hub answers; beyond scale=mini, whether the config's models are here or can be fetched."""
    from rlhf_cli.config.hub import obstacle, on_this_machine

    why = obstacle()
    needless = config.scale == "mini"
    yield Finding(
        "hub", why or "answers", "note" if why else "ok", "not needed at scale=mini" if why and needless else ""
    )
    if needless:
        return
    models = {"actor": config.actor, "critic": config.critic, "reward": config.reward, "gold": config.gold}
    models |= {f"gold {name}": judge for name, judge in config.gold.others.items()}
    for group, origin in config.weights.items():  # found when the config was checked
        yield Finding(f"weights: {group}", origin)
    found = {models[group].hub for group in config.weights}
    for repo in sorted({model.path or model.hub for model in models.values() if model.path or model.hub} - found):
        if Path(repo).expanduser().exists() or on_this_machine(repo):
            yield Finding(repo, "on this machine")
        else:
            can = "will be fetched" if why is None else "not on this machine"
            yield Finding(repo, can, "note" if why is None else "fix", f"hf download {repo}")


def wandb(config: Any) -> Finding:
    from rlhf_cli.tracking.wandb_tracker import why_offline

    if config.tracking.wandb != "wandb":
        return Finding("W&B", f"tracking={config.tracking.wandb or 'none'}")
    why = why_offline()
    return (
        Finding("W&B", f"offline: {why}", "note", "runs are kept on disk; wandb sync uploads them")
        if why
        else Finding("W&B", "online")
    )


def caches(config: Any) -> Finding:
    """What is kept, so that nobody wonders what the first run waits for."""
    home = Path(config.cache_dir).expanduser()
    built = len(list(home.glob("miniatures/*/*/quality.json")))
    sets = len(list(home.glob("prefixes/*")))
    return Finding("caches", f"{home}: {built} miniatures built from other reviews, {sets} prefix data sets")


def training_step(config: Any) -> Finding:
    """Whether one works on the config's device."""
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.engine.device import compute

    begin = time.monotonic()
    try:
        where = compute(config.device, config.precision)
    except UserError as error:
        return Finding("a training step", str(error), "fix", "device=auto")
    try:
        one_step(config, where)
    except Exception as error:
        return failed_step(error, where)
    return Finding("a training step", f"works, {time.monotonic() - begin:.1f} s on {where.device}")


def one_step(config: Any, where: Any) -> None:
    """A training step with a random model of a few thousand weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlhf_cli.data.prompts import PromptSet
    from rlhf_cli.rewards.scorer import Scorer
    from rlhf_cli.rl.algorithm import Algorithm
    from rlhf_cli.training.loop import train_step
    from rlhf_cli.training.optimizer import Optimizer, Schedule
    from rlhf_cli.training.policy import Generation, Policy
    from rlhf_cli.training.rollouts import TrainingPrompts

    shape = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model, reference = (Qwen2ForCausalLM(shape).eval().to(where.device) for _ in range(2))
    generation = Generation((0,), 0, max_length=8, cuda_graphs=config.rollout.cuda_graphs)
    optimizer = Optimizer(model, lr=1e-3, schedule=Schedule(1))
    policy = Policy(model, Numbers(), optimizer, generation, where, micro_batch_size=4)
    prompts = PromptSet(["", ""], ["neutral"] * 2, [[3, 3, 3, 3]] * 2, 0)
    reward = Scorer({"length": lambda texts: torch.tensor([float(len(t)) for t in texts.tokens])}, {"length": 1.0})
    algo = Algorithm(advantage="group", group_size=4, kl="none", whiten=False)
    train_step(policy, reference, None, TrainingPrompts(prompts, 8, group_size=4), reward, algo, step=1)


class Numbers:
    """A tokenizer of texts that are numbers with a space behind each."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}

    def decode(self, row: list[int]) -> str:
        return "".join(f"{token} " for token in row)

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(row) for row in rows]


def show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.tracking.text import printable

    styles = {"ok": "green", "note": "yellow", "fix": "bold red"}
    table = Table("", "", box=None, show_header=False, title="rlhf doctor", title_justify="left")
    for finding in findings:
        said = Text.assemble((f"{printable(finding.what)}: ", "bold"), printable(finding.seen), overflow="fold")
        if finding.fix:
            said.append(f"\n→ {printable(finding.fix)}", styles[finding.state])
        table.add_row(Text(finding.state, styles[finding.state]), said)
    Console().print(table)
