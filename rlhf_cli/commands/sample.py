"""rlhf sample"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

DEFAULT = ["This movie is", "The plot is good", "I love this", "I think this film is"]


@dataclass(frozen=True)
class Drawn:
    """What a policy sampled, a row a response, the rows of a prompt together."""

    asked: Any
    """The prompts, a `PromptSet`."""
    prompt: list[int]
    """Which of them a row continues."""
    rollout: Any
    texts: Any
    told: list[str]
    """The prompts as the policy reads them, special tokens kept."""
    rewards: Any = None
    """Under the reward; None where nothing was to be scored."""
    gold: dict[str, Any] = field(default_factory=dict)
    """By judge, the first one first."""


def run(cfg: DictConfig) -> None:
    """Print what a checkpoint (or the untrained actor) writes after the given review starts, or write it to a file;
    with best_of=N the best of every N responses under the reward."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.folders import check_writable_file
    from rlhf_cli.runs.folder import first_line

    config = settle("sample", cfg, list(HydraConfig.get().overrides.task))
    out = Path(config.out).expanduser() if config.out else None
    if out:
        check_writable_file(out, "out")
    notify(first_line(config))
    drawn = draw(config, scored=out is None or config.best_of is not None)
    rows = best(drawn, config.best_of) if config.best_of else list(range(len(drawn.prompt)))
    if out:
        write(out, drawn, rows)
    else:
        show(drawn, rows)
    if config.best_of:
        account(drawn, config.best_of)
    if out:
        notify(f"written: {config.out}, {len(rows)} samples")


def notify(text: str) -> None:
    print(text, flush=True)


def typed_prompts(config: Any, tokenizer: Any, pad_id: int) -> Any:
    """The prompts of the review starts that were typed, or of four examples."""
    from rlhf_cli.data.prompts import PromptSet, Template

    template = Template(config.prompt.name, config.prompt.system, config.prompt.user, config.prompt.escape)
    typed = [{"prefix": prefix, "class": "typed"} for prefix in config.prefixes or DEFAULT]
    return PromptSet.make(typed, template, tokenizer, pad_id=pad_id)


def draw(config: Any, *, scored: bool) -> Drawn:
    """Load the policy, and the reward where responses are scored; sample `n` times `best_of` responses a prompt."""
    from rlhf_cli.build.experiment import how_to_generate, sampler, say_way
    from rlhf_cli.build.paths import model_path
    from rlhf_cli.build.prompt_data import check_fit
    from rlhf_cli.build.rewards import gold_judges, scorer
    from rlhf_cli.engine.device import compute
    from rlhf_cli.engine.load import load_actor, load_tokenizer
    from rlhf_cli.engine.memory import Memory
    from rlhf_cli.engine.vllm_engine import check_vllm
    from rlhf_cli.runs.checkpoint import find_checkpoint
    from rlhf_cli.training.policy import Policy
    from rlhf_cli.training.rollouts import generate, score
    from rlhf_cli.training.validation import SAMPLING_STEP

    path, checkpoint = model_path(config.actor, config, notify), None
    if config.checkpoint not in (None, "none"):
        checkpoint = find_checkpoint(config.checkpoint, notify)
        path = str(checkpoint / "actor")
    where, tokenizer = compute(config.device, config.precision), load_tokenizer(path)
    if config.rollout.engine == "vllm":
        check_vllm(where)
    reward = scorer(config, where, notify)[0] if scored else None
    judges = gold_judges(config, where, notify) if config.best_of else {}
    actor = load_actor(path, device=where.device)
    say_way(actor, notify)
    how = how_to_generate(config, actor, tokenizer)
    asked = typed_prompts(config, tokenizer, how.pad_id)
    check_fit(actor, asked.ids, how.max_length)
    notify(f"written by {checkpoint or 'the untrained actor (checkpoint=… names a trained one)'}")
    engine = sampler(config, where, asked.ids, notify)
    policy = Policy(actor, tokenizer, None, how, where, memory=Memory(notify), engine=engine)
    prompts = asked.prompts(list(range(len(asked))), group_size=config.n * (config.best_of or 1))
    rollout, prompt = generate(policy, prompts, step=SAMPLING_STEP), prompts.group.tolist()
    texts = policy.texts(rollout, asked, prompt)
    return Drawn(
        asked=asked,
        prompt=prompt,
        rollout=rollout,
        texts=texts,
        told=[tokenizer.decode(ids) for ids in asked.ids],
        rewards=score(reward, policy, texts) if reward else None,
        gold={name: judge(texts) for name, judge in judges.items()},
    )


def best(drawn: Drawn, count: int) -> list[int]:
    """Of every `count` rows the one with the highest reward, penalties taken off; of equal ones the first."""
    highest = drawn.rewards.reward.view(-1, count).argmax(1).tolist()
    return [block * count + at for block, at in enumerate(highest)]


def show(drawn: Drawn, rows: list[int]) -> None:
    from rich.console import Console
    from rich.text import Text

    from rlhf_cli.rewards.scorer import joined
    from rlhf_cli.tracking.text import printable

    console = Console()
    for row in rows:
        prefix = drawn.texts.prefixes[row]
        text = Text(printable(joined(prefix, drawn.texts.responses[row])))
        text.stylize("bold", 0, len(prefix))
        found = scores(drawn, row)
        if len(drawn.gold) > 1:
            del found["gold"]  # the first judge has its own name, too
        figures = ", ".join(f"{name.replace('/', ' ')} {value:.3f}" for name, value in found.items())
        console.print(text, Text(f"  [{figures}]", style="dim"))


def scores(drawn: Drawn, row: int) -> dict[str, float]:
    """A row's score under the reward and gold, as samples.jsonl names them."""
    from rlhf_cli.evaluation.validation_metrics import gold_parts

    if drawn.rewards is None:
        return {}
    found = {"score": drawn.rewards.score} | gold_parts(drawn.gold)
    return {name: float(values[row]) for name, values in found.items()}


def account(drawn: Drawn, count: int) -> None:
    """What choosing gains: one response, and the best of `count`, expected from all that were drawn."""
    from rich.console import Console

    from rlhf_cli.commands.frontier import by_judge, tabulate
    from rlhf_cli.evaluation.frontier import best_of_n, plain
    from rlhf_cli.report.frontier_chart import judges_in

    starts = len(drawn.asked)
    rewards = drawn.rewards.reward.view(starts, -1)
    gold = {name: values.view(starts, -1) for name, values in drawn.gold.items()}
    told = by_judge(gold, lambda judged: plain(best_of_n(rewards, judged, [1, count])))
    judges = judges_in(told) if gold else []
    named = [judge.replace("/", " ") for judge in judges]
    rows = []
    for row in told:
        name = f"best of {row['n']}" if row["n"] > 1 else "one response"
        rows.append([name, f"≤ {row['kl']:.2f}", *(f"{row[key]:.3f}" for key in ("reward", *judges))])
    title = f"the mean over {starts} starts, {rewards.shape[1]} responses each"
    tabulate(Console(), ["", "KL (nats)", "reward", *named], rows, title=title)
    notify(f"KL to the policy that was sampled: at most log N − (N − 1)/N = {told[-1]['kl']:.2f} nats for N = {count}")


def write(out: Path, drawn: Drawn, chosen: list[int]) -> None:
    """A JSON object a line: the text, its numbers, and of the best of N its score and gold."""
    out.parent.mkdir(parents=True, exist_ok=True)
    numbers = _rows(drawn.rollout)
    with out.open("w", encoding="utf-8") as file:
        for row in chosen:
            ids = drawn.asked.ids[drawn.prompt[row]]
            said = {"prompt": drawn.told[drawn.prompt[row]], "response": drawn.texts.responses[row], "prompt_ids": ids}
            file.write(json.dumps(said | numbers[row] | scores(drawn, row), ensure_ascii=False) + "\n")


def _rows(drawn: Any) -> list[dict[str, Any]]:
    """The responses' ids, log-probs (nats, at the rollout's temperature) and whether an EOS token ended them."""
    lengths, ended = drawn.lengths.tolist(), drawn.ended.tolist()
    responses, logprobs = drawn.responses.tolist(), drawn.logprobs.tolist()
    return [
        {"response_ids": ids[:n], "logprobs": numbers[:n], "ended": over}
        for ids, numbers, n, over in zip(responses, logprobs, lengths, ended, strict=True)
    ]
