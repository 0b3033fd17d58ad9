"""rlhf doctor"""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

ROOM = {"mini": 1.0, "full": 80.0}
"""GB that a run, its checkpoints and its models want free."""


@dataclass(frozen=True)
class Finding:
    what: str
    seen: str
    state: str = "ok"
    """ok | note (works, but you may want to know) | fix"""
    fix: str = ""


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


def examine(config: Any) -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from packages()
    yield from devices(config)
    yield from disk(config)
    yield from hub(config)
    yield wandb(config)
    yield caches(config)
    yield training_step(config)
    if config.actor.path:
        yield actor_way(config)


def actor_way(config: Any) -> Finding:
    """Which way the typed actor is sampled and read, and whether it can have critics."""
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.engine.dropout import learns_in_eval_mode
    from rlhf_cli.engine.gate import facts_of, way_of
    from rlhf_cli.engine.load import load_actor, trunk_of
    from rlhf_cli.training.compute import compute

    try:
        actor = load_actor(config.actor.path, device=compute(config).device)
    except UserError as error:
        return Finding("actor", str(error), "fix", "give another actor.path=")
    way = way_of(actor)
    count = sum(p.numel() for p in actor.parameters())
    states = "the base model's" if trunk_of(actor) is not actor else "the whole model's"
    seen = f"{way}; {count / 1e6:.0f}M parameters, {16 * count / 1e9:.2g} GB to train in float32 with AdamW"
    seen += f"; critic= and critic=shared work, on {states} last hidden states"
    if learns_in_eval_mode(actor):
        return Finding("actor", seen, "note", "its dropout cannot be switched off: it learns in eval mode")
    if way.decoder is not None:
        return Finding("actor", seen)
    facts = facts_of(actor)
    how = "with left padding" if facts.left_padding else "prompts of one length at a time"
    how += "" if facts.caches else ", without a cache"
    return Finding("actor", f"{seen}; sampled {how}", "note", "slower than the fast way, and as exact")


def packages() -> Iterator[Finding]:
    """Each dependency's version against what pyproject.toml asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("rlhf") or []]
    except PackageNotFoundError:
        yield Finding("packages", "rlhf is not installed here", "note", "pip install .")
        return
    good = []
    for need in wanted:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield Finding(need.name, "not installed", "fix", f'pip install "{need}"')
            continue
        if need.specifier.contains(found, prereleases=True):
            good.append(f"{need.name} {found}")
        else:
            yield Finding(need.name, found, "fix", f'pip install "{need}"')
    yield Finding("packages", ", ".join(good))


def devices(config: Any) -> Iterator[Finding]:
    import torch

    from rlhf_cli.config.errors import UserError
    from rlhf_cli.config.scale import _gpus
    from rlhf_cli.training.compute import compute

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield Finding(f"GPU {i}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available() and _gpus():
        yield Finding(
            "GPU", "the driver sees one, torch does not", "fix", "install a CUDA build of torch: https://pytorch.org"
        )
    try:
        where = compute(config)
        yield Finding("device", f"{where.device}, {str(where.dtype).removeprefix('torch.')}, scale={config.scale}")
        if where.device.type == "cpu":
            yield matrix_unit(where.dtype, bfloat16_gain())
    except UserError as error:
        yield Finding("device", str(error), "fix", "device=auto")
    cores = os.cpu_count() or 1
    yield Finding("threads", f"{torch.get_num_threads()} of {cores} cores")


def matrix_unit(dtype: Any, gain: float) -> Finding:
    """`gain`: how many times as fast as in float32 a product is in bfloat16."""
    import torch

    seen = f"a product in bfloat16 takes {100 / gain:.0f} % of its time in float32"
    low = dtype == torch.bfloat16
    if gain > 1.5 and not low:
        return Finding("matrix unit", seen, "note", "precision=bf16 is faster here, the wider the model")
    if gain < 1 and low:
        return Finding("matrix unit", seen, "note", "precision=fp32 is faster here")
    return Finding("matrix unit", seen)


def bfloat16_gain(tries: int = 10) -> float:
    """Of a layer-sized product on the CPU, in this process's threads."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a, b = (torch.ones(n, 512, dtype=dtype) for n in (512, 1024))
        found = []
        for _ in range(tries + 1):
            begin = time.perf_counter()
            torch.mm(a, b.T)
            found.append(time.perf_counter() - begin)
        return min(found)

    return seconds(torch.float32) / seconds(torch.bfloat16)


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
    """Whether the hub answers; at scale=full, whether what this config needs is here or can be fetched."""
    from rlhf_cli.config.hub import obstacle, on_this_machine

    why = obstacle()
    needless = config.scale == "mini"
    yield Finding(
        "hub", why or "answers", "note" if why else "ok", "not needed at scale=mini" if why and needless else ""
    )
    if needless:
        return
    wanted = (config.actor, config.critic, config.reward, config.gold)
    for repo in sorted({model.path or model.hub for model in wanted if model.path or model.hub}):
        if Path(repo).expanduser().is_dir() or on_this_machine(repo):
            yield Finding(repo, "on this machine")
        else:
            can = "will be fetched" if why is None else "not on this machine"
            yield Finding(repo, can, "note" if why is None else "fix", f"hf download {repo}")


def wandb(config: Any) -> Finding:
    from rlhf_cli.tracking.wandb_tracker import why_offline

    if config.tracking.name != "wandb":
        return Finding("W&B", f"tracking={config.tracking.name}")
    why = why_offline()
    return (
        Finding("W&B", f"offline: {why}", "note", "runs are kept on disk; wandb sync uploads them")
        if why
        else Finding("W&B", "online")
    )


def caches(config: Any) -> Finding:
    """What is kept, so that nobody wonders what the first run waits for."""
    home = Path(config.cache_dir).expanduser()
    built = sorted({path.parent.name for path in home.glob("miniatures/*/*/quality.json")})
    sets = len(list(home.glob("prefixes/*")))
    seen = f"{home}: miniatures {', '.join(built) or 'none'}; {sets} prefix data sets"
    if config.scale == "mini" and len(built) < 4:
        return Finding("caches", seen, "note", "the first run builds the rest, in about two minutes: rlhf models")
    return Finding("caches", seen)


def training_step(config: Any) -> Finding:
    """Sample, estimate and update once with a random model of a few thousand weights on the config's device."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlhf_cli.engine.read import read
    from rlhf_cli.engine.sample import sample
    from rlhf_cli.rl.rollout import Experience, Prompts
    from rlhf_cli.training.compute import compute
    from rlhf_cli.training.setup import algorithm
    from rlhf_cli.training.update import Learner, Pass, update

    begin = time.monotonic()
    try:
        where, rows = compute(config), torch.arange(8)
        shape = Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        actor = Qwen2ForCausalLM(shape).eval().to(where.device)
        prompts = Prompts(torch.full((8, 4), 3), rows * 0 + 4, rows, rows // 4).to(where.device)
        with where.autocast():
            rollout = sample(
                actor,
                prompts,
                eos_ids=(0,),
                pad_id=0,
                max_length=8,
                temperature=1.0,
                seed=0,
                step=1,
                cuda_graphs=config.rollout.cuda_graphs,
            ).trimmed()
            with torch.no_grad():
                old = read(actor, rollout, temperature=1.0).logprobs
        composed = algorithm(config.model_copy(update={"algo": config.algo.model_copy(update=PLAIN)}))
        experience = Experience(rollout, old, old, old * 0, old * 0, old * 0)
        scores = rollout.lengths.float()
        experience = composed.estimate(experience, scores, beta=0.0, full_kl=None)
        settings = Pass(composed, where, actor, 4, 1.0, 0.0, 0.0, 1.0, 1.0)
        update(settings, experience, Learner(actor, 1e-3, 0.0, 1.0), None, epochs=1, minibatches=1, seed=0, step=1)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Finding("a training step", f"{type(error).__name__}: {lines[0]}", "fix", "try device=cpu precision=fp32")
    return Finding("a training step", f"works, {time.monotonic() - begin:.1f} s on {where.device}")


PLAIN = {"advantage": "group", "surrogate": "clip", "kl": "none", "update": "gradient", "group_size": 4}


def show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.tracking.text import printable

    styles = {"ok": "green", "note": "yellow", "fix": "bold red"}
    table = Table("", "what", "seen", "to do", title="rlhf doctor")
    for finding in findings:
        cells = (finding.state, finding.what, finding.seen, finding.fix)
        table.add_row(
            *(Text(printable(cell), styles[finding.state] if cell == finding.state else "") for cell in cells)
        )
    Console().print(table)
