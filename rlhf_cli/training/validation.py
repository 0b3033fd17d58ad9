"""Validation: sample on the test prompts, score, measure."""

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine import processes
from rlhf_cli.evaluation.signs import invariance, text_panel
from rlhf_cli.evaluation.user_metrics import Metrics, measured
from rlhf_cli.evaluation.validation_metrics import gold_parts, sample_rows, validation_metrics
from rlhf_cli.evaluation.words import FILMS, WordLists
from rlhf_cli.rewards.scorer import Score, Scorer
from rlhf_cli.rl.masked import masked_sum
from rlhf_cli.training.experience import evaluate
from rlhf_cli.training.policy import Policy
from rlhf_cli.training.rollouts import generate, score

SAMPLING_STEP = 0
"""Every validation samples with the random numbers of this step, so two of them differ in the policy only."""


def validate(
    policy: Policy,
    reference: Any,
    prompts: PromptSet,
    reward: Scorer,
    gold: dict[str, Score],
    *,
    batch_size: int,
    lists: WordLists = FILMS,
    edits: bool = False,
    metrics_of_users: Metrics | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(`val/*` and `hacking/*` metrics, sample rows) of the policy on every prompt of the set, `batch_size` decoded at
    a time.

    `gold`: the judges that are not trained on, by name. `val/gold_score` is the first's; of several, each has
    `val/gold_score/<name>`, and the samples' parts likewise `gold` and `gold/<name>`. `lists`: of words that the
    responses are looked through for; `edits`: score them edited as well. `metrics_of_users`: what is measured
    beside; the first process does it for all. Raises RunFailed where one of them does not give numbers.
    """
    chosen = list(range(len(prompts)))
    rollout = generate(policy, prompts.prompts(chosen), step=SAMPLING_STEP, micro_batch_size=batch_size)
    batch = evaluate(rollout, policy, reference, None)
    texts = policy.texts(rollout, prompts, chosen)
    rewards = score(reward, policy, texts)
    metrics = validation_metrics(batch, texts, rewards, prompts.classes)
    assert batch.entropies is not None
    metrics["val/entropy"] = float(masked_sum(batch.entropies, rollout.mask) / rollout.lengths.sum())
    panel = text_panel(texts.responses, lists)
    if edits:
        panel |= invariance(
            lambda edited: reward.score(replace(texts, responses=edited)).tolist(),
            texts.responses,
            rewards.score.tolist(),
        )
    metrics |= {f"hacking/{name}": value for name, value in panel.items()}
    scores = gold_parts({name: judge(texts) for name, judge in gold.items()})
    metrics |= {f"val/{part.replace('gold', 'gold_score', 1)}": float(value.mean()) for part, value in scores.items()}
    if policy.mix:
        perplexity = partial(policy.mix.perplexity, policy.model, policy.compute)
        metrics["val/ptx_perplexity"] = policy.fit("reading", perplexity)
    if metrics_of_users:
        metrics |= processes.first(lambda: measured(metrics_of_users, texts.prompts, texts.responses))
    return metrics, sample_rows(texts, rewards, prompts.classes, scores)
