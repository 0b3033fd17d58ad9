"""rlhf sample"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

DEFAULT = ["This movie is", "The plot is good", "I love this", "I think this film is"]


def run(cfg: DictConfig) -> None:
    """Print what a checkpoint (or the untrained actor) writes after the given review starts."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console
    from rich.text import Text

    from rlhf_cli.commands.eval import judged_experiment, on_prompts
    from rlhf_cli.config.compose import settle
    from rlhf_cli.rewards.scorer import joined
    from rlhf_cli.runs.folder import first_line
    from rlhf_cli.tracking.text import printable

    config = settle("sample", cfg, list(HydraConfig.get().overrides.task))
    if config.out:
        write_samples(config)
        return
    judged, checkpoint = judged_experiment(config, first_line(config))
    print(f"written by {checkpoint or 'the untrained actor (checkpoint=… names a trained one)'}", flush=True)
    policy = judged.policy
    prompts = typed_prompts(config, policy.tokenizer, policy.generation.pad_id, each=config.n)
    _, rows = on_prompts(judged, policy, prompts, config)
    console = Console()
    for row in rows:
        whole = printable(joined(row["prefix"], row["response"]))
        text = Text(whole)
        text.stylize("bold", 0, len(row["prefix"]))
        console.print(text, Text(f"  [score {row['score']:.3f}]", style="dim"))


def typed_prompts(config: Any, tokenizer: Any, pad_id: int, *, each: int = 1) -> Any:
    """The prompts of the review starts that were typed, or of four examples, `each` so many times."""
    from rlhf_cli.data.prompts import PromptSet, Template

    template = Template(config.prompt.name, config.prompt.system, config.prompt.user, config.prompt.escape)
    typed = [{"prefix": prefix, "class": "typed"} for prefix in config.prefixes or DEFAULT for _ in range(each)]
    return PromptSet.make(typed, template, tokenizer, pad_id=pad_id)


def write_samples(config: Any) -> None:
    """Write what the policy samples to `config.out`, with its numbers, a JSON object a line; loads no reward model."""
    from rlhf_cli.build.experiment import how_to_generate, sampler, say_way
    from rlhf_cli.build.paths import model_path
    from rlhf_cli.build.prompt_data import check_fit
    from rlhf_cli.config.folders import check_writable_file
    from rlhf_cli.engine.device import compute
    from rlhf_cli.engine.load import load_actor, load_tokenizer
    from rlhf_cli.engine.memory import Memory
    from rlhf_cli.engine.vllm_engine import check_vllm
    from rlhf_cli.runs.checkpoint import find_checkpoint
    from rlhf_cli.runs.folder import first_line
    from rlhf_cli.training.policy import Policy
    from rlhf_cli.training.rollouts import generate
    from rlhf_cli.training.validation import SAMPLING_STEP

    def notify(text: str) -> None:
        print(text, flush=True)

    out = Path(config.out).expanduser()
    check_writable_file(out, "out")
    notify(first_line(config))
    path = model_path(config.actor, config, notify)
    if config.checkpoint not in (None, "none"):
        path = str(find_checkpoint(config.checkpoint, notify) / "actor")
    where, tokenizer = compute(config.device, config.precision), load_tokenizer(path)
    if config.rollout.engine == "vllm":
        check_vllm(where)
    actor = load_actor(path, device=where.device)
    say_way(actor, notify)
    how = how_to_generate(config, actor, tokenizer)
    asked = typed_prompts(config, tokenizer, how.pad_id)
    check_fit(actor, asked.ids, how.max_length)
    engine = sampler(config, where, asked.ids, notify)
    policy = Policy(actor, tokenizer, None, how, where, memory=Memory(notify), engine=engine)
    prompts = asked.prompts(list(range(len(asked))), group_size=config.n)
    drawn = generate(policy, prompts, step=SAMPLING_STEP)
    texts = policy.texts(drawn, asked, prompts.group.tolist())
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for row, prompt, response in zip(_rows(drawn), prompts.group.tolist(), texts.responses, strict=True):
            ids = asked.ids[prompt]
            said = {"prompt": tokenizer.decode(ids), "response": response, "prompt_ids": ids}
            file.write(json.dumps(said | row, ensure_ascii=False) + "\n")
    notify(f"written: {config.out}, {len(drawn)} samples")


def _rows(drawn: Any) -> list[dict[str, Any]]:
    """The responses' ids, log-probs (nats, at the rollout's temperature) and whether an EOS token ended them."""
    lengths, ended = drawn.lengths.tolist(), drawn.ended.tolist()
    responses, logprobs = drawn.responses.tolist(), drawn.logprobs.tolist()
    return [
        {"response_ids": ids[:n], "logprobs": numbers[:n], "ended": over}
        for ids, numbers, n, over in zip(responses, logprobs, lengths, ended, strict=True)
    ]
