"""What `rlhf doctor` says of a run's memory, before it starts."""

import os
from typing import Any

from rlhf_cli.commands.doctor_findings import Finding


def memory(config: Any, where: Any) -> Finding:
    """The byte budget of this config beside what its device has."""
    import torch

    from rlhf_cli.engine.budget import GB, budget

    shape = shape_of(config)
    if shape is None:
        return Finding("memory", "the actor's sizes are not known before its config is here", "note")
    on_gpu = where.device.type == "cuda"
    critic = "none" if not config.algo.needs_critic else "shared" if config.critic.name == "shared" else "own"
    parts = budget(
        shape,
        critic=critic,
        judges=judges(config),
        work=work(config, where),
        rank=config.actor.rank,
        moments=config.optim.moments(on_gpu=on_gpu),
    )
    wanted = sum(parts.values())
    named = ", ".join(f"{name} {size / GB:.1f}" for name, size in sorted(parts.items(), key=lambda p: -p[1])[:5])
    seen = f"about {wanted / GB:.1f} GB ({named} …)"
    if on_gpu and not torch.cuda.is_available():
        return Finding("memory", f"{seen} of a GPU's memory, in {str(where.dtype).removeprefix('torch.')}")
    has = torch.cuda.get_device_properties(where.device).total_memory if on_gpu else machine_bytes()
    seen += f" of {'the GPU' if on_gpu else 'this machine'}'s {has / GB:.0f} GB"
    if wanted > has:
        return Finding("memory", seen, "note", f"less: {', '.join(savings(config, critic, on_gpu=on_gpu))}")
    return Finding("memory", seen)


def planned(config: Any) -> Any:
    """Where the config would run: a plan for a GPU may be made where there is none. Raises UserError for a GPU that is
    not among those here."""
    import torch

    from rlhf_cli.engine.device import Compute, compute

    if config.device.startswith("cuda") and not torch.cuda.is_available():
        dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
        return Compute(torch.device(config.device), dtype)
    return compute(config.device, config.precision)


def savings(config: Any, critic: str, *, on_gpu: bool) -> list[str]:
    """What to type for less, of what this config has not."""
    optim = config.optim
    wanted = {
        "critic=shared": critic == "own",
        "actor.lora.rank=16": not config.actor.rank and config.algo.update == "gradient" and not config.shard,
        "optim.name=adamw_8bit": on_gpu and optim.name == "adamw" and not config.shard,
        "optim.gradient_checkpointing=true": not optim.gradient_checkpointing,
        "optim.micro_batch_size=1": optim.micro_batch_size == "auto" or optim.micro_batch_size > 1,
    }
    return [key for key, saves in wanted.items() if saves] or ["a smaller model"]


def work(config: Any, where: Any) -> Any:
    import torch

    from rlhf_cli.engine.budget import Work

    asked = config.optim.micro_batch_size
    words = config.data.max_words + len(f"{config.prompt.system or ''} {config.prompt.user}".split())
    return Work(
        rows=min(64 if asked == "auto" else asked, -(-config.rollout.batch_size // config.algo.minibatches)),
        decoded=min(config.rollout.micro_batch_size, config.rollout.batch_size),
        prompt=16 + 2 * words,  # what a template adds, and two tokens a word
        response=config.rollout.max_response_length,
        checkpointing=config.optim.gradient_checkpointing,
        half=where.dtype == torch.bfloat16,
    )


def judges(config: Any) -> list[int]:
    """Parameters of the classifiers that judge; a miniature has about 1 % of its model's."""
    from rlhf_cli.engine.budget import CLASSIFIERS

    names = [
        *(source.name for source in config.reward.all_sources.values()),
        *(judge.name for judge in config.gold.judges.values()),
    ]
    share = 0.01 if config.scale == "mini" else 1.0
    return [int(share * CLASSIFIERS[name]) for name in dict.fromkeys(names) if name in CLASSIFIERS]


def shape_of(config: Any) -> Any:
    """The actor's, from its config where that is on this machine, else as published; None where neither is."""
    from rlhf_cli.config.hub import on_this_machine
    from rlhf_cli.engine.budget import SHAPES, Shape
    from rlhf_cli.miniatures.build import MINIATURES, SHIPPED

    actor, path = config.actor, config.actor.path
    if path is None and config.scale == "mini" and actor.name in MINIATURES:
        path = str(SHIPPED / actor.name)
    published = {name: shape for name, shape in SHAPES.items() if (actor.hub or "").startswith(name)}
    if path is None and published:
        return max(published.items(), key=lambda item: len(item[0]))[1]
    if path is None and not on_this_machine(str(actor.hub)):
        return None
    try:
        from transformers import AutoConfig

        return Shape.of(AutoConfig.from_pretrained(path or actor.hub, local_files_only=True))
    except (OSError, ValueError, AttributeError):
        return None


def machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
