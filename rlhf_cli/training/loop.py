"""The algorithm as in a paper: sample, score, estimate, update, track."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_cli.engine.casts import forget_casts
from rlhf_cli.engine.finite import check_finite
from rlhf_cli.engine.memory import peak_mb
from rlhf_cli.engine.read import keepable, read, response_logprobs, response_values
from rlhf_cli.engine.sample import sample
from rlhf_cli.engine.value_head import SharedCritic
from rlhf_cli.evaluation.text import repetition
from rlhf_cli.rewards.penalty import overlong_penalty
from rlhf_cli.rewards.scorer import Rewards, Texts
from rlhf_cli.rl.advantages import constant_groups
from rlhf_cli.rl.losses import explained_variance
from rlhf_cli.rl.masked import masked_mean
from rlhf_cli.rl.rollout import Experience, Prompts, Rollout, concatenate
from rlhf_cli.training import distributed
from rlhf_cli.training.setup import Lab
from rlhf_cli.training.state import State
from rlhf_cli.training.update import Pass, lr_scale, update


class Clock:
    """Seconds by phase, as `time/<phase>_s`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        key = f"time/{name}_s"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start


def train_step(lab: Lab, state: State, step: int) -> dict[str, float]:
    """One step: sample ▸ score ▸ estimate ▸ update. Returns its metrics."""
    config, algo, clock = lab.config, lab.config.algo, Clock()
    beta = state.kl.value
    state.seen.clear()
    rollout, texts, rewards, drawn = collect(lab, step, clock)
    state.seen.update(rollout=rollout, texts=texts, rewards=rewards)
    with clock.phase("score"):
        paid = lab.paid(rollout, texts)
    with clock.phase("forward"):
        seen = look_back(lab, rollout)
        state.seen["experience"] = seen.experience
        for name, numbers in (
            ("a policy's log-prob is", seen.experience.old_logprobs),
            ("a reference's log-prob is", seen.experience.ref_logprobs),
            ("a value is", seen.experience.values),
        ):
            check_finite(name, numbers, rollout.mask)
        scores = rewards.reward.to(lab.compute.device)
        experience = state.algorithm.estimate(seen.experience, scores, beta=beta, full_kl=seen.full_kl, paid=paid)
        state.seen["experience"] = experience
        check_finite("an advantage is", experience.advantages, rollout.mask)
    with clock.phase("update"):
        optim = config.optim
        lr = lr_scale(step, steps=config.steps, warmup=optim.warmup_steps, schedule=optim.schedule)
        settings = Pass(
            algorithm=state.algorithm,
            compute=lab.compute,
            reference=lab.reference,
            micro_batch_size=optim.micro_batch_size,
            temperature=config.rollout.temperature,
            beta=beta,
            beta_old=state.kl_old.value,
            value_weight=algo.value,
            lr=lr,
            exact_start=algo.old_logprobs == "recompute",
            target_kl=algo.target_kl,
            memory=lab.memory,
            lockstep=distributed.is_split(lab.actor),
        )
        metrics = update(
            settings,
            experience,
            state.actor,
            state.critic,
            epochs=algo.epochs,
            minibatches=algo.minibatches,
            seed=config.seed,
            step=step,
            trust=state.trust,
            extra_loss=lab.pretraining.loss(lab, step) if lab.pretraining and algo.ptx else None,
        )
    mismatch = max(m.get("train/logprob_mismatch", 0.0) for m in (metrics, seen.metrics))
    metrics |= seen.metrics | describe(experience, texts, rewards) | {"train/logprob_mismatch": mismatch}
    metrics |= {"train/beta": beta, "train/lr": optim.actor_lr * lr}
    if algo.surrogate == "kl_penalty":
        metrics["train/beta_old"] = state.kl_old.value
    if algo.filter == "refill":
        metrics["train/groups_drawn"] = drawn
    state.kl.update(metrics["train/kl"], len(rollout))
    state.kl_old.update(metrics["train/approx_kl"], len(rollout))
    if lab.continual:
        lab.continual.collect(texts, algo.group_size)
    if algo.steps_per_iteration and step % algo.steps_per_iteration == 0:
        lab.reference.load_state_dict(lab.actor.state_dict())
        metrics |= lab.continual.train(step) if lab.continual else {}
    tokens = int(rollout.lengths.sum())
    metrics |= clock.seconds | {"throughput/tokens_per_s": tokens / sum(clock.seconds.values())}
    return metrics | {"memory/peak_mb": peak_mb(lab.compute.device)}


def collect(lab: Lab, step: int, clock: Clock) -> tuple[Rollout, Texts, Rewards, int]:
    """A batch of scored rollouts, and how many groups were drawn for it.

    With filter=refill, groups whose rewards are all equal are drawn again from other prompts (DAPO, Yu et al. 2025,
    sec. 3.2), `refill_tries` times at most; then the batch is filled up with what there is.
    """
    config, algo = lab.config, lab.config.algo
    batch, size = config.rollout.batch_size, algo.group_size
    kept: list[tuple[Rollout, Texts, Rewards]] = []
    spare: list[tuple[Rollout, Texts, Rewards]] = []
    tries = algo.refill_tries + 1 if algo.filter == "refill" else 1
    for round_ in range(tries):
        with clock.phase("rollout"):
            # rounds read the shuffled prompts from places that no step comes to
            chosen = lab.train.batch(step + round_ * FAR, count=batch // size, seed=config.seed)
            prompts = lab.train.prompts(chosen, group_size=size)
            prompts = replace(prompts, index=prompts.index + round_ * batch, group=prompts.group + round_ * batch)
            rollout = roll_out(lab, prompts, step=step, micro_batch_size=config.rollout.micro_batch_size)
        with clock.phase("score"):
            texts = lab.texts(rollout, lab.train, [i for i in chosen for _ in range(size)])
            rewards = shaped(scored(lab, texts), rollout, limit=config.rollout.max_response_length, algo=algo)
        if algo.filter == "none":
            return rollout, texts, rewards, len(chosen)
        flat = constant_groups(rewards.reward, rollout.group.cpu())
        for rows, where in ((~flat, kept), (flat, spare)):
            index = rows.nonzero().squeeze(1)
            where.append((rollout.select(index.to(rollout.lengths.device)), texts.select(index), rewards.select(index)))
        if sum(len(r) for r, _, _ in kept) >= batch:
            break
    pieces = [piece for piece in [*kept, *spare] if len(piece[0])]
    rollout = concatenate([r for r, _, _ in pieces], lab.pad).select(slice(0, batch)).trimmed()
    texts = Texts.join([t for _, t, _ in pieces]).select(torch.arange(batch))
    rewards = Rewards.join([r for _, _, r in pieces]).select(torch.arange(batch))
    return rollout, texts, rewards, (round_ + 1) * (batch // size)


FAR = 1_000_003
"""Steps apart, in which refills look for their prompts."""


def scored(lab: Lab, texts: Texts) -> Rewards:
    """Each process scores its share."""
    mine = texts.select(torch.arange(len(texts.responses))[distributed.share(len(texts.responses))])
    return Rewards.join(distributed.gather(distributed.all_or_none(lambda: lab.scorer(mine))))


def shaped(rewards: Rewards, rollout: Rollout, *, limit: int, algo: Any) -> Rewards:
    """The rewards minus the soft punishment of overlong responses, where that is on."""
    if not algo.overlong_buffer:
        return rewards
    lengths = rollout.lengths.tolist()
    penalty = torch.tensor([overlong_penalty(n, limit=limit, buffer=algo.overlong_buffer) for n in lengths])
    return replace(rewards, reward=rewards.reward - penalty, parts={**rewards.parts, "overlong": penalty})


def roll_out(lab: Lab, prompts: Prompts, *, step: int, micro_batch_size: int) -> Rollout:
    """Sample a response to each prompt, `micro_batch_size` at a time, fewer where memory runs out; each process its
    share."""
    # a captured step would keep what is split over the processes whole on each of them
    graphs = lab.config.rollout.cuda_graphs and not distributed.is_split(lab.actor)
    with distributed.put_together(lab.actor):
        sampled = lab.memory.fit("sampling", micro_batch_size, lambda rows: _roll_out(lab, prompts, step, rows, graphs))
    if distributed.world() > 1:
        gathered = distributed.gather(sampled.to(torch.device("cpu")))
        sampled = concatenate(gathered, lab.pad).to(lab.compute.device)
    return sampled.trimmed()


def _roll_out(lab: Lab, prompts: Prompts, step: int, micro_batch_size: int, cuda_graphs: bool) -> Rollout:
    rollout = lab.config.rollout
    pieces = []
    mine = distributed.share(len(prompts))
    for at in range(mine.start, mine.stop, micro_batch_size):
        with lab.compute.autocast():
            pieces.append(
                sample(
                    lab.actor,
                    prompts.select(slice(at, min(at + micro_batch_size, mine.stop))).to(lab.compute.device),
                    eos_ids=lab.eos,
                    pad_id=lab.pad,
                    max_length=rollout.max_response_length,
                    temperature=rollout.temperature,
                    seed=lab.config.seed,
                    step=step,
                    cuda_graphs=cuda_graphs,
                )
            )
    names = ("prompts", "prompt_lengths", "responses", "lengths", "ended", "logprobs", "group")
    return Rollout(**{name: torch.cat([getattr(p, name) for p in pieces]) for name in names})


@dataclass(frozen=True, slots=True)
class Hindsight:
    """What the current policy, the reference and the critic say of a rollout."""

    experience: Experience
    """Without advantages and returns yet."""
    full_kl: Float[Tensor, "B R"] | None
    metrics: dict[str, float]
    """Of the actor's forward pass; where there is none, the update's first pass over the batch has them."""


def look_back(lab: Lab, rollout: Rollout, *, whole: bool = False) -> Hindsight:
    """Read a rollout with every model, `optim.micro_batch_size` rows at a time, fewer where memory runs out; the actor
    only if that tells anything that sampling did not, or if `whole`."""
    size = lab.config.optim.micro_batch_size
    with distributed.put_together(lab.actor, lab.critic, lab.reference):
        return lab.memory.fit("reading", size, lambda rows: _look_back(lab, rollout, rows, whole))


@torch.no_grad()
def _look_back(lab: Lab, rollout: Rollout, size: int, whole: bool) -> Hindsight:
    config, algo = lab.config, lab.config.algo
    temperature = config.rollout.temperature
    wants_kl = algo.kl == "reward" and algo.kl_estimator == "full"
    head = lab.critic.score if isinstance(lab.critic, SharedCritic) else None
    reads = whole or algo.old_logprobs == "recompute" or wants_kl or head is not None
    keeps = not whole and keeps_graph(lab, rollout)
    old, reference, values, full_kl, entropy, mismatch = [], [], [], [], [], []
    mine = rollout.select(distributed.share(len(rollout)))
    order = mine.side_by_side()
    mine, back = mine.select(order), order.argsort()
    for rows in mine.pieces(size):
        micro = mine.select(rows).trimmed()
        with lab.compute.autocast():
            ref, _ = response_logprobs(lab.reference, micro, temperature=temperature)
            value = ref * 0
            if lab.critic is not None and head is None:
                with torch.set_grad_enabled(keeps):
                    value = response_values(lab.critic, micro)
            logprobs = micro.logprobs
            if reads:
                reading = read(
                    lab.actor,
                    micro,
                    temperature=temperature,
                    value_head=head,
                    reference=lab.reference if wants_kl else None,
                    direction=algo.kl_direction,
                )
                mismatch.append((reading.logprobs - micro.logprobs).abs().max())
                entropy.append(reading.entropies.sum())
                value = value if reading.values is None else reading.values
                logprobs = reading.logprobs if algo.old_logprobs == "recompute" else logprobs
                if reading.full_kl is not None:
                    full_kl.append(reading.full_kl)
        old.append(logprobs)
        reference.append(ref)
        values.append(value)
    forget_casts()  # the critic's are not needed before the actor has learned
    width = rollout.responses.shape[1]
    zero = torch.zeros_like(rollout.logprobs)
    with torch.set_grad_enabled(keeps):
        graph = filled(values, width)[back] if keeps else None
    experience = Experience(
        rollout,
        old_logprobs=stacked(old, width, back),
        ref_logprobs=stacked(reference, width, back),
        values=stacked(values, width, back).detach(),
        advantages=zero,
        returns=zero,
        graph=graph,
    )
    metrics = {}
    if reads:
        tokens = int(rollout.lengths.sum())
        metrics["train/entropy"] = distributed.sums([float(torch.stack(entropy).sum())])[0] / tokens
        metrics["train/logprob_mismatch"] = max(distributed.gather(float(torch.stack(mismatch).max())))
    return Hindsight(experience, stacked(full_kl, width, back) if full_kl else None, metrics)


def keeps_graph(lab: Lab, rollout: Rollout) -> bool:
    """Whether the critic's forward pass is also that of its first update: it learns from the whole batch at once, in
    this process, and its activations fit."""
    critic, config = lab.critic, lab.config
    alone = distributed.world() == 1 and not distributed.is_split(critic)
    fits = config.algo.minibatches == 1 and not config.optim.gradient_checkpointing and not lab.memory.fits
    return alone and fits and critic is not None and not isinstance(critic, SharedCritic) and keepable(critic, rollout)


def stacked(pieces: list[Tensor], width: int, back: Tensor) -> Float[Tensor, "B R"]:
    """Rows of different widths, filled up with 0, in the order `back`; those of this process, then of all."""
    return distributed.rows(filled(pieces, width)[back])


def filled(pieces: list[Tensor], width: int) -> Float[Tensor, "b R"]:
    """The rows of this process."""
    return torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces])


def describe(experience: Experience, texts: Texts, rewards: Rewards) -> dict[str, float]:
    """The metrics of a batch of rollouts, before its update."""
    rollout, mask = experience.rollout, experience.rollout.mask
    log_ratio = (experience.old_logprobs - experience.ref_logprobs) * mask
    k3 = (torch.exp(-log_ratio) - 1 + log_ratio) * mask
    metrics: dict[str, Any] = {
        "train/score": rewards.score.mean(),
        "train/reward": rewards.reward.mean(),
        "train/kl": log_ratio.sum(1).mean(),
        "train/kl_k3": k3.sum(1).mean(),
        "train/response_length": rollout.lengths.float().mean(),
        "train/eos_rate": rollout.ended.float().mean(),
        "train/repetition": sum(map(repetition, texts.responses)) / len(texts.responses),
    }
    metrics["train/advantage_length_corr"] = correlation(
        masked_mean(experience.advantages, mask, 1), rollout.lengths.float()
    )
    if len(rollout.group.unique()) < len(rollout):
        metrics["train/zero_variance_groups"] = constant_groups(rewards.reward, rollout.group.cpu()).float().mean()
    metrics |= {f"train/penalty/{name}": part.mean() for name, part in rewards.parts.items()}
    metrics |= {f"train/source/{name}": part.mean() for name, part in rewards.sources.items()}
    if experience.values.any():
        metrics["train/explained_variance"] = explained_variance(experience.values, experience.returns, mask)
    return {name: float(value) for name, value in metrics.items()}


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x.dot(y)) / scale if scale > 0 else 0.0
