"""A step with non-finite numbers: its batch is dumped, and the run stops or skips the step."""

import json
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from rlhf_cli.build.experiment import Experiment
from rlhf_cli.config.errors import RunFailed
from rlhf_cli.config.schema import Config
from rlhf_cli.engine import processes
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.lora import learned
from rlhf_cli.engine.module_outputs import first_nonfinite
from rlhf_cli.tracking.jsonl import as_line
from rlhf_cli.training.policy import models

MODELS = ("actor", "critic", "reference")
ADVICE = {
    "gradient that": "that line: a root, a logarithm or a quotient has no gradient at 0",
    "reward": "read the responses of these rows in texts.jsonl: the reward source gave no number for them",
    "reference": "the reference model's weights or dtype: try precision=fp32, check actor.path",
    "value": "the critic: lower optim.critic_lr, check critic.path",
    "critic": "the critic: lower optim.critic_lr, check critic.path",
    "advantage": "the rewards and the values in batch.safetensors, algo.beta times the KL, algo.group_scale",
    "log-prob": "the policy itself: is a weight not finite (reason.json counts them)? Lower optim.actor_lr",
    "gradient": "the parameters in reason.json: lower optim.actor_lr or optim.critic_lr, more optim.warmup_steps, "
    "precision=fp32",
    "loss": "the ratios (old and new log-probs): lower optim.actor_lr, fewer algo.epochs",
}


def report_nonfinite(
    fault: NonFinite, experiment: Experiment, config: Config, step: int, folder: Path, say: Callable[[str], None]
) -> None:
    """Dump the batch and say what to look at. Raises RunFailed where on_nonfinite=stop."""
    place = folder / f"nonfinite_step_{step:06d}"
    modules = first_modules(fault, experiment)
    if processes.is_first():
        dump(fault, experiment, config, step, place, modules)
    named = "".join(
        f" The {model}'s first module that is not finite: {name}." for model, name in modules.items() if name
    )
    text = f"step {step}: {fault}; no weight was changed by it.{named} Kept: {place}. Look at {advice(fault.what)}."
    if config.on_nonfinite == "stop":
        raise RunFailed(f"{text} (on_nonfinite=skip leaves such steps out.)") from fault
    say(f"{text} The rest of this step is left out (on_nonfinite=skip).")


def advice(what: str) -> str:
    """What to look at where `what` is not finite."""
    return next((text for sign, text in ADVICE.items() if sign in what), "batch.safetensors")


def first_modules(fault: NonFinite, experiment: Experiment) -> dict[str, str | None]:
    """The module of each model where the batch first gives numbers that are not finite; None where there is none.

    Empty where no batch is known, and of models that are split over processes: a forward pass is all processes' work.
    """
    known, policy = fault.evidence, experiment.policy
    source = known.get("batch") or known.get("rollouts")
    found: dict[str, str | None] = {}
    for name, model in zip(MODELS, models(policy, experiment.critic, experiment.reference), strict=True):
        if source is not None and model is not None and not processes.is_split(model):
            with policy.compute.autocast():
                found[name] = policy.fit("reading", partial(first_nonfinite, model, source.rollout))
    return found


def dump(
    fault: NonFinite,
    experiment: Experiment,
    config: Config,
    step: int,
    folder: Path,
    modules: dict[str, str | None],
) -> None:
    """Leave batch.safetensors, texts.jsonl, config.yaml and reason.json in `folder`: nothing in them can run."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {"rng": torch.get_rng_state()}
    known = fault.evidence
    batch, rollouts = known.get("batch"), known.get("rollouts")
    rollout, rewards = (rollouts.rollout, rollouts.rewards) if rollouts else (None, None)
    for record in (rollout, batch):
        for name in [field.name for field in fields(record)] if record else []:
            value = getattr(record, name)
            if isinstance(value, torch.Tensor) and name != "live_values":
                tensors[name] = value.detach().cpu().contiguous()
    scores = rewards.score if rewards else known.get("scores")
    if scores is not None:
        tensors["scores"] = scores.detach().cpu().contiguous()
    if rewards:
        tensors["rewards"] = rewards.reward.detach().cpu().contiguous()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, str(folder / "batch.safetensors"))
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config.model_dump(by_alias=True), sort_keys=False), encoding="utf-8"
    )
    if texts := rollouts.texts if rollouts else known.get("texts"):
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
            for row, (prompt, response) in enumerate(zip(texts.prompts, texts.responses, strict=True)):
                score = None if scores is None else float(scores[row])
                file.write(as_line({"row": row, "prompt": prompt, "response": response, "score": score}))
    actor, critic, _ = models(experiment.policy, experiment.critic, experiment.reference)
    reason = {
        "step": step,
        "what": fault.what,
        "rows": fault.rows,
        "first modules that are not finite": modules,
        "parameters": fault.evidence.get("parameters"),
        "random numbers": {"seed": config.seed, "step": step, "note": "every draw is a function of these two"},
        "weights that are not finite": {"actor": not_finite(actor), "critic": not_finite(critic)},
    }
    (folder / "reason.json").write_text(json.dumps(reason, indent=1) + "\n", encoding="utf-8")


def not_finite(model: Any) -> int | None:
    """How many of a model's weights, its adapters among them, are NaN or infinite."""
    if model is None:
        return None
    parameters = {id(p): p for p in [*model.parameters(), *learned(model)]}
    return sum(int((~torch.isfinite(processes.local(p))).sum()) for p in parameters.values())
