"""rlhf sample"""

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
    judged, checkpoint = judged_experiment(config, first_line(config))
    print(f"written by {checkpoint or 'the untrained actor (checkpoint=… names a trained one)'}", flush=True)
    _, rows = on_prompts(judged, judged.policy, typed_prompts(config, judged.policy), config)
    console = Console()
    for row in rows:
        whole = printable(joined(row["prefix"], row["response"]))
        text = Text(whole)
        text.stylize("bold", 0, len(row["prefix"]))
        console.print(text, Text(f"  [score {row['score']:.3f}]", style="dim"))


def typed_prompts(config: Any, policy: Any) -> Any:
    """The prompts of the review starts that were typed, or of four examples."""
    from rlhf_cli.data.prompts import PromptSet, Template

    template = Template(config.prompt.name, config.prompt.system, config.prompt.user)
    typed = [{"prefix": prefix, "class": "typed"} for prefix in config.prefixes or DEFAULT]
    return PromptSet.make(typed, template, policy.tokenizer, pad_id=policy.generation.pad_id)
