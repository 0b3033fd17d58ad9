"""Sampling on the test prompts and judging what comes back."""

from typing import Any

from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.evaluation.hacking import text_panel
from rlhf_cli.evaluation.validate import sample_rows, validation_metrics
from rlhf_cli.training.loop import look_back, roll_out, scored
from rlhf_cli.training.setup import Lab

SAMPLING_STEP = 0
"""Every validation draws with the random numbers of this step: what differs between two is the policy."""


def judge(lab: Lab, prompts: PromptSet) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(`val/*` metrics, sample rows) of the lab's actor on every prompt of the set."""
    chosen = list(range(len(prompts)))
    rollout = roll_out(lab, prompts.prompts(chosen), step=SAMPLING_STEP, micro_batch_size=lab.config.val.batch_size)
    critic, lab.critic = lab.critic, None  # validation needs no values
    try:
        seen = look_back(lab, rollout, whole=True)
    finally:
        lab.critic = critic
    texts = lab.texts(rollout, prompts, chosen)
    rewards = scored(lab, texts)
    metrics = validation_metrics(seen.experience, texts, rewards, prompts.classes)
    metrics["val/entropy"] = seen.metrics["train/entropy"]
    metrics |= {f"hacking/{name}": value for name, value in text_panel(texts.responses).items()}
    gold = lab.gold(texts) if lab.gold else None
    if gold is not None:
        metrics["val/gold_score"] = float(gold.mean())
    if lab.pretraining:
        metrics["val/ptx_perplexity"] = lab.pretraining.perplexity(lab)
    return metrics, sample_rows(texts, rewards, prompts.classes, gold)
