"""A step whose numbers are not finite: what it was learning from is kept, and the run stops or goes on without it."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from rlhf_cli.config.errors import RunFailed
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.tracking.jsonl import as_line
from rlhf_cli.training import distributed
from rlhf_cli.training.judge import judge
from rlhf_cli.training.loop import train_step
from rlhf_cli.training.setup import Lab
from rlhf_cli.training.state import State

ADVICE = {
    "reward": "read the responses of these rows in texts.jsonl: whoever scores gave no number for them",
    "reference": "the reference model's weights or dtype: try precision=fp32, check actor.path",
    "value": "the critic: lower optim.critic_lr, check critic.path",
    "critic": "the critic: lower optim.critic_lr, check critic.path",
    "advantage": "the rewards and the values in batch.safetensors, algo.beta times the KL, algo.group_scale",
    "log-prob": "the policy itself: is a weight not finite (reason.json counts them)? Lower optim.actor_lr",
    "gradient": "the parameters in reason.json: lower optim.actor_lr or optim.critic_lr, more optim.warmup_steps, "
    "precision=fp32",
    "loss": "the ratios (old and new log-probs): lower optim.actor_lr, fewer algo.epochs",
}


def finite_step(lab: Lab, state: State, step: int, folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """`train_step`; where a number is not finite the batch is dumped and, with on_nonfinite=skip, the step left out.

    Raises RunFailed, which says what to look at, where on_nonfinite=stop.
    """
    try:
        return train_step(lab, state, step)
    except NonFinite as fault:
        state.drop_gradients()
        settle(fault, lab, state.seen, step, folder, say)
        return {"train/nonfinite": 1.0}


def finite_judge(
    lab: Lab, step: int, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """`judge` on the test prompts, in the same way."""
    try:
        return judge(lab, lab.test)
    except NonFinite as fault:
        settle(fault, lab, {}, step, folder, say)
        return {"val/nonfinite": 1.0}, []


def settle(
    fault: NonFinite, lab: Lab, seen: dict[str, Any], step: int, folder: Path, say: Callable[[str], None]
) -> None:
    """Dump, say what to look at, and stop the run if it is to stop."""
    place = folder / f"nonfinite_step_{step:06d}"
    if distributed.is_first():
        dump(fault, lab, {**seen, **fault.evidence}, step, place)
    advice = next((text for sign, text in ADVICE.items() if sign in fault.what), "batch.safetensors")
    text = f"step {step}: {fault}; no weight was changed by it. Kept: {place}. Look at {advice}."
    if lab.config.on_nonfinite == "stop":
        raise RunFailed(f"{text} (on_nonfinite=skip leaves such steps out.)") from fault
    say(f"{text} The rest of this step is left out (on_nonfinite=skip).")


def dump(fault: NonFinite, lab: Lab, known: dict[str, Any], step: int, folder: Path) -> None:
    """Leave batch.safetensors, texts.jsonl, config.yaml and reason.json in `folder`: nothing in them can run."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {"rng": torch.get_rng_state()}
    experience, rollout, rewards = (known.get(name) for name in ("experience", "rollout", "rewards"))
    for record in (rollout, experience):
        for name in [field.name for field in fields(record)] if record else []:
            value = getattr(record, name)
            if isinstance(value, torch.Tensor) and name != "graph":
                tensors[name] = value.detach().cpu().contiguous()
    scores = rewards.score if rewards else known.get("scores")
    if scores is not None:
        tensors["scores"] = scores.detach().cpu().contiguous()
    if rewards:
        tensors["rewards"] = rewards.reward.detach().cpu().contiguous()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, str(folder / "batch.safetensors"))
    (folder / "config.yaml").write_text(yaml.safe_dump(lab.config.model_dump(by_alias=True), sort_keys=False))
    if texts := known.get("texts"):
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
            for row, (prompt, response) in enumerate(zip(texts.prompts, texts.responses, strict=True)):
                score = None if scores is None else float(scores[row])
                file.write(as_line({"row": row, "prompt": prompt, "response": response, "score": score}))
    reason = {
        "step": step,
        "what": fault.what,
        "rows": fault.rows,
        "parameters": fault.evidence.get("parameters"),
        "random numbers": {"seed": lab.config.seed, "step": step, "note": "every draw is a function of these two"},
        "weights that are not finite": {"actor": not_finite(lab.actor), "critic": not_finite(lab.critic)},
    }
    (folder / "reason.json").write_text(json.dumps(reason, indent=1) + "\n")


def not_finite(model: Any) -> int | None:
    """How many of a model's weights are NaN or infinite."""
    return (
        None if model is None else sum(int((~torch.isfinite(distributed.local(p))).sum()) for p in model.parameters())
    )
