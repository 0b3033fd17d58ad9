"""`rlhf`'s own training step, one at a time."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import turns
from shapes import EOS, GROUP, PAD, RESPONSE, SEQUENCES, SHAPES, load_words

sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "shape", "algo", "regime", "dtype"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--micro", type=int, default=0)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    import torch  # noqa: F401
    from transformers import Qwen2ForCausalLM  # noqa: F401

    imported = time.perf_counter()
    talk = turns.Turns()
    from rlhf_cli.training.clock import clock

    made = make_experiment(Path(given.folder), given.shape, given.algo, given.dtype, given.micro, given.overrides)
    work = json.loads((Path(given.folder) / "work.json").read_text(encoding="utf-8"))
    force(work["lengths"][given.regime], given.regime == "fixed")
    talk.say(ready=time.perf_counter() - turns.STARTED, imports=imported - turns.STARTED)
    step = 0
    while True:
        talk.wait()
        step += 1
        with clock() as seconds:
            if given.profile and step == 3:
                profiled(given.profile, lambda: made.step(3))
            else:
                made.step(step)
        talk.phases.update({name: seconds[f"time/{name}_s"] for name in ("rollout", "score", "forward")})
        talk.done(sum(work["lengths"][given.regime]))


def profiled(out: Path, run: Any) -> Any:
    import torch

    with torch.profiler.profile() as profile:
        result = run()
    out.write_text(
        profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=40),
        encoding="utf-8",
    )
    return result


def make_experiment(folder: Path, shape: str, algo: str, dtype: str, micro: int, overrides: list[str]) -> Any:
    """What `build.experiment` makes, from the benchmark's folders and without a data set."""
    from rlhf_cli.build.algo import algorithm
    from rlhf_cli.build.experiment import Experiment, to_learn
    from rlhf_cli.config.compose import plan
    from rlhf_cli.data.prompts import PromptSet
    from rlhf_cli.engine.device import compute
    from rlhf_cli.engine.load import load_actor, load_critic
    from rlhf_cli.rewards.classifier import Classifier
    from rlhf_cli.rewards.scorer import Scorer
    from rlhf_cli.training.policy import Critic, Generation, Policy
    from rlhf_cli.training.rollouts import TrainingPrompts

    config = plan(
        "train",
        [
            f"algo={algo}",
            "scale=mini",
            "tracking=none",
            "steps=1000000",
            "algo.epochs=1",
            "algo.minibatches=1",
            "algo.old_logprobs=rollout",
            f"algo.group_size={GROUP if algo == 'grpo' else 1}",
            f"rollout.batch_size={SEQUENCES}",
            f"rollout.micro_batch_size={SEQUENCES}",
            f"rollout.max_response_length={RESPONSE}",
            f"optim.micro_batch_size={micro or SHAPES[shape].rlhf_micro[algo]}",
            "optim.gradient_checkpointing=false",
            "optim.actor_lr=1e-6",
            f"precision={dtype}",
            *overrides,
        ],
        multirun=False,
        config_dir=None,
    ).jobs[0]
    where, words = compute(config.device, config.precision), load_words(folder)
    classifier = Classifier(folder / "reward", device=where.device, batch_size=SEQUENCES, dtype=where.dtype)
    classifier.tokenizer, classifier.limit = load_words(folder), 512
    classifier.tokenizer.padding_side = "right"
    actor = load_actor(str(folder / "actor"), device=where.device)
    values = load_critic(str(folder / "actor"), device=where.device) if config.algo.needs_critic else None
    prompts = json.loads((folder / "work.json").read_text(encoding="utf-8"))["prompts"][
        : SEQUENCES // config.algo.group_size
    ]
    rows = PromptSet([words.decode(p) for p in prompts], ["neutral"] * len(prompts), prompts, PAD)
    rollout = config.rollout
    made = Experiment(
        policy=Policy(
            model=actor,
            tokenizer=words,
            optimizer=None,
            generation=Generation(
                (EOS,), PAD, max_length=rollout.max_response_length, micro_batch_size=rollout.micro_batch_size
            ),
            compute=where,
            micro_batch_size=config.optim.micro_batch_size,
        ),
        reference=load_actor(str(folder / "actor"), device=where.device, dtype=where.dtype).requires_grad_(False),
        critic=None if values is None else Critic(values, None),
        data=TrainingPrompts(rows, rollout.batch_size, config.algo.group_size),
        test=PromptSet([], [], [], PAD),
        reward=Scorer({"roberta": lambda t: classifier.score(t.view("prefix_response"), "negative")}, {"roberta": 1.0}),
        gold={},
        algo=algorithm(config),
    )
    return to_learn(made, config)


def force(lengths: list[int], fixed: bool) -> None:
    """Ends response i with an EOS at its length, and nowhere else. The log-probs stay those of the policy."""
    import torch

    from rlhf_cli.engine import sample as sampling

    uniforms, draw = sampling.uniforms, sampling.draw
    limits = torch.tensor(lengths)

    def noted(seed: int, step: int, index: Any, position: Any) -> Any:
        ending = (limits.to(index.device)[index] == position + 1) & (not fixed)
        return uniforms(seed, step, index, position) - ending.double()  # a negative number: it ends here

    def forced(logits: Any, uniform: Any) -> Any:
        ending = uniform < 0
        token, logprob = draw(logits, uniform + ending)
        wanted = torch.where(ending, EOS, torch.where(token == EOS, EOS + 2, token))
        # p of the wanted token from that of the drawn one: nothing here waits for a GPU or changes its shape
        change = logits.gather(1, wanted[:, None]) - logits.gather(1, token[:, None])
        return wanted, logprob + change.squeeze(1).float()

    sampling.uniforms, sampling.draw = noted, forced


if __name__ == "__main__":
    main()
