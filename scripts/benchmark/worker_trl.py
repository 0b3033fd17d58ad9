"""TRL's own trainers, one step at a time: GRPOTrainer, and PPOTrainer of `trl.experimental.ppo`."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import turns
from shapes import EOS, GROUP, PAD, PROMPT, RESPONSE, SEQUENCES, SHAPES, load_words


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "shape", "algo", "regime", "dtype"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--micro", type=int, default=0)
    parser.add_argument("--trl")
    given = parser.parse_args()
    if given.trl:
        sys.path.insert(0, given.trl)
    from transformers import TrainerCallback

    imported = time.perf_counter()
    talk = turns.Turns()

    class Alternate(TrainerCallback):
        """Between two steps the other side has the machine."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            talk.say(ready=time.perf_counter() - turns.STARTED, imports=imported - turns.STARTED)
            talk.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            talk.done(sum(lengths))
            talk.wait()

    folder = Path(given.folder)
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    lengths = work["lengths"][given.regime]
    micro = given.micro or SHAPES[given.shape].trl_micro[given.algo]
    build = grpo if given.algo == "grpo" else ppo
    trainer = build(folder, work["prompts"], lengths, given.regime == "fixed", micro, given.dtype == "bf16", talk)
    trainer.add_callback(Alternate())
    trainer.train()


def forced(lengths: list[int], fixed: bool, rows: int) -> Any:
    """Ends response i with an EOS at its length, and nowhere else; padding is never drawn."""
    import torch
    from transformers import LogitsProcessor

    class Forced(LogitsProcessor):
        """Nothing here waits for a GPU."""

        def __init__(self, first: int) -> None:
            self.lengths = torch.tensor(lengths[first : first + rows])[:, None]
            self.at = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.at += 1
            self.lengths = self.lengths.to(scores.device)
            scores = scores.clone()
            scores[:, EOS] = scores[:, PAD] = -torch.inf
            if not fixed:
                ending = self.lengths == self.at
                scores.masked_fill_(ending, -torch.inf)
                scores[:, EOS : EOS + 1].masked_fill_(ending, 0.0)
            return scores

    return Forced


def force(model: Any, lengths: list[int], fixed: bool, rows: int, talk: turns.Turns) -> None:
    """Every call of `model.generate` handles the next `rows` rollouts of the batch."""
    original, processor, calls = model.generate, forced(lengths, fixed, rows), [0]

    def generate(*args: Any, **kwargs: Any) -> Any:
        first = calls[0] % SEQUENCES
        calls[0] += rows
        with talk.phase("rollout"):
            return original(*args, logits_processor=[processor(first)], **kwargs)

    model.generate = generate


def common(micro: int, bf16: bool) -> dict[str, Any]:
    import torch

    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": SEQUENCES // micro,
        "learning_rate": 1e-6,
        "temperature": 1.0,
        "bf16": bf16,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "seed": 0,
    }


def grpo(
    folder: Path, prompts: list[list[int]], lengths: list[int], fixed: bool, micro: int, bf16: bool, talk: turns.Turns
) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import GRPOConfig, GRPOTrainer

    words = load_words(folder)
    texts = [words.decode(ids) + " " for ids in prompts[: SEQUENCES // GROUP]]
    options = common(micro, bf16)
    config = GRPOConfig(
        **options,
        max_steps=10**6,
        generation_batch_size=SEQUENCES,
        num_generations=GROUP,
        max_completion_length=RESPONSE,
        beta=0.04,
        num_iterations=1,
        top_k=0,
        logging_strategy="no",
    )
    reward = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1, ignore_mismatched_sizes=True
    )
    trainer = GRPOTrainer(
        model=str(folder / "actor"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=words,
        reward_processing_classes=load_words(folder),
    )
    force(trainer.model, lengths, fixed, SEQUENCES, talk)
    trainer._calculate_rewards = talk.timed("score", trainer._calculate_rewards)
    inner = trainer._get_per_token_logps_and_entropies

    def forward(*args: Any, **kwargs: Any) -> Any:
        import torch

        if torch.is_grad_enabled():
            return inner(*args, **kwargs)
        with talk.phase("forward"):
            return inner(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = forward
    return trainer


def ppo(
    folder: Path, prompts: list[list[int]], lengths: list[int], fixed: bool, micro: int, bf16: bool, talk: turns.Turns
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    words = load_words(folder)
    options = common(micro, bf16)
    config = PPOConfig(
        **options,
        total_episodes=SEQUENCES * 10**6,
        num_ppo_epochs=1,
        num_mini_batches=1,
        local_rollout_forward_batch_size=SEQUENCES,  # the default; in pieces it is slower
        response_length=RESPONSE,
        stop_token=None if fixed else "eos",
        kl_coef=0.05,
        num_sample_generations=0,
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "actor") for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(folder / "actor", num_labels=1)
    roberta = AutoModelForSequenceClassification.from_pretrained(folder / "reward")

    class Reward(torch.nn.Module):
        """P(negative), in the form that TRL wants: a backbone and a score of its last hidden states."""

        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone = lambda **options: roberta.roberta(**(options | {"position_ids": None}))
            self.inner = roberta

        def score(self, states: Any) -> Any:
            negative = self.inner.classifier(states).softmax(-1)[:, :1, None]
            return negative.expand(-1, states.shape[1], 1)

    trainer = PPOTrainer(
        args=config,
        processing_class=words,
        model=policy,
        ref_model=reference,
        reward_model=Reward(),
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": [ids[:PROMPT] for ids in prompts]}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[:1]}),
    )
    force(policy, lengths, fixed, SEQUENCES, talk)

    def low(function: Any) -> Any:
        """TRL's PPO calls these models past accelerate's autocast."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(trainer.accelerator.device.type, torch.bfloat16, enabled=bf16):
                return function(*args, **kwargs)

        return inner

    policy.generate = low(policy.generate)
    rewards, forward = ppo_trainer.get_reward, ppo_trainer.forward

    def get_reward(model: Any, *args: Any) -> Any:
        with talk.phase("score" if isinstance(model, Reward) else "forward"):
            return rewards(model, *args)

    def run(model: Any, *args: Any) -> Any:
        if torch.is_grad_enabled():
            return forward(model, *args)
        with talk.phase("forward"):
            return forward(model, *args)

    ppo_trainer.get_reward, ppo_trainer.forward = low(get_reward), low(run)
    return trainer


if __name__ == "__main__":
    main()
