"""`rlhf sample … out=`: what stands in the file can be checked from outside, with plain transformers."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compare import plainly
from helpers.runs import train
from helpers.tiny_models import make, tokenizer

from rlhf_cli.cli import dispatch
from rlhf_cli.commands.sample import Drawn, best
from rlhf_cli.data.generated import generate_reviews
from rlhf_cli.engine.load import eos_ids, load_tokenizer
from rlhf_cli.rewards.scorer import Rewards

KEYS = {"prompt", "response", "prompt_ids", "response_ids", "logprobs", "ended"}
OPTIONS = ["scale=mini", "device=cpu", "n=3", "rollout.temperature=0.7", "rollout.max_response_length=9"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), [r.text for r in generate_reviews(200, seed=0)])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def check(rows: list[dict[str, Any]], model: Any, ends: set[int], temperature: float = 0.7, longest: int = 9) -> None:
    """Each row against the log-softmax of the model's own forward over the row alone."""
    for row in rows:
        assert set(row) == KEYS
        ids, start = torch.tensor([row["prompt_ids"] + row["response_ids"]]), len(row["prompt_ids"])
        logits = model(input_ids=ids).logits[0, start - 1 : -1].float() / temperature
        expected = logits.log_softmax(-1).gather(1, ids[0, start:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(row["logprobs"]), expected, atol=1e-4, rtol=0)
        assert row["ended"] == (row["response_ids"][-1] in ends)
        assert not ends & set(row["response_ids"][:-1])
        assert row["ended"] or len(row["response_ids"]) == longest


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.smoke
def test_an_untrained_models_samples(kind: str, tmp_path: Path, tokens: Any) -> None:
    folder, out = make(kind, tmp_path / "model", tokens), tmp_path / "new" / "samples.jsonl"
    model = plainly(folder)
    with torch.no_grad():  # so that some responses end
        model.get_output_embeddings().weight[tokens.eos_token_id] *= 6
    model.save_pretrained(folder)
    options = [*OPTIONS, "prompt=plain", "checkpoint=none", f"actor.path={folder}", f"out={out}"]
    assert dispatch(["sample", "This movie is", "I", *options]) == 0
    rows = lines(out)
    assert [row["prompt"] for row in rows] == ["This movie is"] * 3 + ["I"] * 3
    assert len({tuple(row["response_ids"]) for row in rows}) == 6
    assert {row["ended"] for row in rows} == {True, False}
    check(rows, plainly(folder), {tokens.eos_token_id})
    for row in rows:
        text = tokens.decode([t for t in row["response_ids"] if t != tokens.eos_token_id])
        assert row["response"] == text
    before = out.read_bytes()
    assert dispatch(["sample", "This movie is", "I", *options]) == 0
    assert out.read_bytes() == before
    assert dispatch(["sample", "This movie is", "I", *options, "rollout.micro_batch_size=2"]) == 0
    again = lines(out)
    assert [row["response_ids"] for row in again] == [row["response_ids"] for row in rows]


def test_a_checkpoints_samples(cache: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "algo=reinforce", "steps=1", "optim.actor_lr=1e-2", "gold=none") == 0
    out = tmp_path / "samples.jsonl"
    given = [f"checkpoint={tmp_path / 'run'}", "n=2", "rollout.temperature=0.7", "rollout.max_response_length=9"]
    assert dispatch(["sample", "This movie is", *given, f"out={out}"]) == 0
    rows = lines(out)
    assert len(rows) == 2
    assert rows[0]["prompt"].count("This movie is") == 1
    folder = tmp_path / "run" / "checkpoints" / "step_000001" / "actor"
    model = plainly(folder)
    check(rows, model, set(eos_ids(model, load_tokenizer(str(folder)))))


def test_a_file_that_cannot_be_written_is_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["sample", "I", *OPTIONS, "checkpoint=none", f"out={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert f"out={tmp_path} is a folder" in said.err
    assert "Traceback" not in said.err
    assert dispatch(["sample", "I", *OPTIONS, "checkpoint=none", "out=/proc/none/samples.jsonl"]) == 2


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def test_the_best_of_n_is_the_one_of_n_that_the_reward_likes_most(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, best = tmp_path / "every.jsonl", tmp_path / "best.jsonl"
    asked = ["sample", "This movie is", "I", *OPTIONS, "reward=python", "reward.fn=test_sample:length"]
    asked += ["gold=[vader,roberta_large]"]
    assert dispatch([*asked, "n=8", f"out={every}"]) == 0
    capsys.readouterr()
    assert dispatch([*asked, "n=2", "best_of=4", f"out={best}"]) == 0
    all_rows, rows = lines(every), lines(best)
    assert all(set(row) == KEYS for row in all_rows)
    assert all(set(row) == KEYS | {"score", "gold", "gold/vader", "gold/roberta_large"} for row in rows)
    blocks = [[len(row["response"]) for row in all_rows[start : start + 4]] for start in range(0, 16, 4)]
    for block, (start, row) in enumerate(zip(range(0, 16, 4), rows, strict=True)):
        longest = all_rows[start + blocks[block].index(max(blocks[block]))]
        assert {key: row[key] for key in KEYS} == longest
        assert row["score"] == len(row["response"])
    said = capsys.readouterr().out
    mean = sum(sum(block) for block in blocks) / 16
    assert f"{mean:.3f}" in said  # of one response
    # all 70 choices of 4 of a start's 8
    highest = [max(four) for at in (0, 2) for four in itertools.combinations(blocks[at] + blocks[at + 1], 4)]
    assert f"{sum(highest) / 140:.3f}" in said
    assert "log N − (N − 1)/N = 0.64 nats for N = 4" in said


def test_the_best_is_after_penalties_and_is_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sample", "I", *OPTIONS[:2], "best_of=3", "reward=vader", "gold=none", "penalty.weight=1", "n=1"]
    assert dispatch([*asked, "rollout.max_response_length=9"]) == 0
    said = capsys.readouterr().out
    assert "best of 3" in said
    assert "gold" not in said
    scored = Rewards(torch.tensor([1.0, 0.9, 0.2, 0.3]), torch.tensor([0.0, 0.9, 0.2, 0.2]), {})
    assert best(Drawn(None, [0] * 4, None, None, [], scored), 2) == [1, 2]
    assert dispatch([*asked, "best_of=1"]) == 2
