"""debug=: configs that find a fault."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bandit import Bandit

from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.engine.finite import NonFinite
from rlhf_cli.engine.layer import rms_norm
from rlhf_cli.engine.module_outputs import first_nonfinite
from rlhf_cli.runs import training_run
from rlhf_cli.runs.inspection import anomalies, longest, profiled
from rlhf_cli.runs.nonfinite import advice
from rlhf_cli.training.clock import phase
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


def test_profile_leaves_a_trace_and_says_what_took_longest(tmp_path: Path) -> None:
    said: list[str] = []
    with profiled(False, tmp_path, said.append):
        torch.ones(3).sum()
    assert not said
    with profiled(True, tmp_path, said.append), phase("rollout"):
        torch.mm(torch.ones(400, 400), torch.ones(400, 400))
    assert (tmp_path / "trace.json.gz").stat().st_size
    assert "aten::mm" in (tmp_path / "operations.txt").read_text()
    assert {"aten::mm", "rollout"} <= {line.split()[0] for line in said}
    assert max(map(len, said[1:])) < 80
    config = job("debug=profile")
    assert (config.profile_step, config.steps) == (3, 3)
    with pytest.raises(UserError, match="profile_step=3: a run of steps=2 never takes it"):
        job("debug=profile", "steps=2")


def test_the_longest_operations_come_first_with_their_share() -> None:
    head, first, second = longest([("b", 1.0, 7), ("a", 3.0, 2)])
    assert head.split() == ["operation", "ms", "share", "calls"]
    assert first.split() == ["a", "3.0", "75.0%", "2"]
    assert second.split() == ["b", "1.0", "25.0%", "7"]
    forward, backward = (longest([("attention_" * 6 + end, 1.0, 1)])[1] for end in ("forward", "backward"))
    assert len(forward) == len(backward) == len(head)
    assert forward != backward


def test_nans_names_the_operation_and_rlhfs_line() -> None:
    assert job("debug=nans").detect_anomaly
    x = torch.zeros(2, 8, requires_grad=True)
    with (
        pytest.raises(
            NonFinite, match=r"that \w+ gave \(of rlhf_cli/engine/layer\.py:\d+ rms_norm: .*\) is not finite"
        ),
        anomalies(True),
    ):
        (rms_norm(x, torch.ones(8), 0.0) * 1e-30).sum().backward()  # 0 / 0
    with anomalies(False):  # nobody looks
        (rms_norm(x, torch.ones(8), 0.0)).sum().backward()
    with pytest.raises(RuntimeError, match="another"), anomalies(True):
        raise RuntimeError("another")


def test_nans_keeps_the_batch_and_names_a_line_that_is_not_rlhfs(monkeypatch: pytest.MonkeyPatch) -> None:
    bandit = Bandit("algo=grpo")
    actor_loss = type(bandit.algorithm).actor_loss

    def rooted(self, batch, logprobs, *args, **options):
        loss, metrics = actor_loss(self, batch, logprobs, *args, **options)
        return loss + (logprobs * 0).sqrt().sum(), metrics  # a reward's advantage: words that advice goes by

    monkeypatch.setattr(type(bandit.algorithm), "actor_loss", rooted)
    with (
        pytest.raises(NonFinite, match=r"that \w+ gave \(of .*tests/test_debug\.py:\d+ rooted: .*sqrt") as caught,
        anomalies(True),
    ):
        bandit.step(1)
    assert len(caught.value.evidence["rollouts"]) == len(caught.value.evidence["batch"].rollout) == 64
    assert advice(caught.value.what).startswith("that line")


@pytest.mark.parametrize("critic", ["algo=ppo", "critic=shared"])
def test_the_module_is_named_where_numbers_first_are_not_finite(critic: str) -> None:
    bandit = Bandit("algo=ppo", critic)
    bandit.step(1)
    norm = bandit.actor.model.layers[0].post_attention_layernorm
    score, rollout = bandit.critic.model.score, bandit.rollout
    assert first_nonfinite(bandit.actor, rollout, 8) is first_nonfinite(bandit.critic.model, rollout, 8) is None
    with torch.no_grad():
        score.weight[0, 3] = float("inf")
    assert first_nonfinite(bandit.critic.model, rollout, 8) == "score (Linear; its weights are not finite)"
    with torch.no_grad():
        norm.weight.fill_(3e38)
    found = first_nonfinite(bandit.actor, rollout, 8)
    assert found == "model.layers.0.post_attention_layernorm (Qwen2RMSNorm; its input and its weights are finite)"
    assert not any(module._forward_hooks for module in bandit.actor.modules())


def test_a_nan_that_one_process_finds_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run.distributed, "world", lambda: 2)
    training_run._fits(job("debug=nans"))
    with pytest.raises(UserError, match="use on_nonfinite=stop"):
        training_run._fits(job("debug=nans", "on_nonfinite=skip"))
