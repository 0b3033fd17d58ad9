"""debug=: configs that find a fault."""

from typing import Any

import torch

from rlhf_cli.config.compose import plan
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.training.rollouts import TrainingPrompts


def job(*overrides: str) -> Any:
    return plan("train", ["scale=mini", *overrides], multirun=False, config_dir=None).jobs[0]


def test_fast_is_small_at_every_scale_and_mirrored_nowhere() -> None:
    for config in (job("debug=fast"), job("debug=fast", "algo=grpo", "experiment=smoke")):
        assert (config.steps, config.rollout.batch_size, config.val.prompts, config.tracking.to) == (2, 16, 6, [])
    assert job("debug=fast", "steps=3", "tracking=tensorboard").tracking.to == ["tensorboard"]
    assert job().tracking.to != []


def test_overfit_draws_the_first_steps_prompts_again_and_again() -> None:
    assert job("debug=overfit").data.one_batch
    assert not job().data.one_batch
    rows = PromptSet([""] * 50, ["neutral"] * 50, [[i] for i in range(50)], 0)
    once, ever = (TrainingPrompts(rows, 8, group_size=2, one_batch=one) for one in (False, True))
    assert ever.draw(1)[1] == ever.draw(5)[1] == once.draw(1)[1]
    assert once.draw(5)[1] != once.draw(1)[1]
    assert torch.equal(ever.draw(3)[0].ids, once.draw(1)[0].ids)
    assert ever.draw(3, 1)[1] != ever.draw(3)[1]  # a refill round has others
