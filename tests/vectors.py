"""Reference numbers: maps a case of tests/data/vectors.json (its group and params) to this project's functions.

`run(case)` names its outputs as the case does. What the project does differently on purpose, where the inputs make
it matter, raises NotImplementedError with the reason.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.rl.advantages import gae, group_advantages, leave_one_out, reward_to_go, token_rewards
from rlhf_cli.rl.controllers import AdaptiveKL, FixedKL
from rlhf_cli.rl.divergences import entropy, full_kl, kl_estimate, select_logprobs
from rlhf_cli.rl.losses import LOG_RATIO_LIMIT, aggregate, aggregation_total, kl_loss, pairwise_loss, policy_loss
from rlhf_cli.rl.losses import value_loss as value_loss_
from rlhf_cli.rl.masked import masked_mean, whiten

Inputs = dict[str, Tensor]
Params = dict[str, Any]
Outputs = dict[str, Tensor]

SINGLETON = "a group of one: advantage 0 here, since one reward says nothing of its rank; this peer keeps the raw score"
PAST_THE_END = "TRL puts the score one token past the end and bootstraps there; here it is on the last response token"
CLAMPED = "log-ratios beyond ±20 are clamped here, as in verl and OpenRLHF; this peer lets them through"
HOLES = "a masked token inside a response is skipped here, as in verl and NeMo-RL; OpenRLHF discounts across it"
NO_RETURN_TO_GO = "NeMo-RL's REINFORCE++ has no reward-to-go"
LEAVE_ONE_OUT = "NeMo-RL's GRPO takes a leave-one-out baseline and std; here the group's mean, as in the paper"


def run(case: dict[str, Any]) -> Outputs:
    """Every output of the case that the project computes. Raises NotImplementedError(reason), see above."""
    params = case.get("params") or {}
    group = case["name"].split("/")[0]
    if group not in GROUPS:
        raise NotImplementedError(f"no group {group!r} here")
    context = params | {"source": case.get("source") or {}, "name": case["name"]}
    if group == "reward_model_loss":
        return reward_model_loss(case["inputs"], context)
    dtype = getattr(torch, params.get("dtype") or "float64")
    whole = ("group", "labels", "last_token_index")
    inputs = {
        name: torch.tensor(value, dtype=torch.long if name in whole else dtype)
        for name, value in case["inputs"].items()
        if value is not None
    }
    return GROUPS[group](inputs, context)


def peer(params: Params) -> str:
    source = params["source"]
    return f"{source.get('repo') or source.get('wheel') or ''} {source.get('function', '')}".lower()


# --- advantages ---------------------------------------------------------------------------------------------------


def gae_plain(x: Inputs, p: Params) -> Outputs:
    holes = bool((x["mask"][:, 1:] > x["mask"][:, :-1]).any())
    if holes and "openrlhf" in peer(p):
        raise NotImplementedError(HOLES)
    advantages, returns = gae(x["rewards"], x["values"], x["mask"], gamma=p["gamma"], lam=p["lam"])
    return {"advantages": advantages, "returns": returns}


def gae_whitened(x: Inputs, p: Params) -> Outputs:
    out = gae_plain(x, p)
    return out | {"advantages": whiten(out["advantages"], x["mask"], **whitening(p))}


def whitening(p: Params) -> dict[str, Any]:
    """ddof and eps of the case; OpenRLHF and NeMo-RL floor the variance at eps where they take ddof 0."""
    ddof = p.get("ddof", 1)
    floor = ddof == 0 and ("openrlhf" in peer(p) or "nemo" in peer(p))
    return {"ddof": ddof, "eps": p.get("eps", 1e-8), "floor": floor}


def trl_ppo_rollout_block(x: Inputs, p: Params) -> Outputs:
    mask = x["mask"]
    if not bool(mask.all()):
        raise NotImplementedError(PAST_THE_END)
    kl = kl_estimate(x["logprobs"], x["ref_logprobs"], estimator=p.get("kl_estimator", "k1"))
    rewards = token_rewards(x["scores"], kl, mask, beta=p["kl_coef"])
    if p.get("whiten_rewards"):
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, x["values"], mask, gamma=p["gamma"], lam=p["lam"])
    return {"rewards": rewards, "returns": returns, "advantages_whitened": whiten(advantages, mask)}


def grpo_advantage(x: Inputs, p: Params) -> Outputs:
    refuse_singletons(x["group"], p)
    if "nemo" in peer(p) and "leave" in peer(p):
        raise NotImplementedError(LEAVE_ONE_OUT)
    scale = "std" if p.get("std_normalise", True) else "none"
    return {"advantages": group_advantages(x["scores"], x["group"], scale=scale, eps=p.get("eps", 1e-6))}


def refuse_singletons(group: Tensor, p: Params) -> None:
    gives_zero = "nemo" in peer(p) or "rloo_vectorized" in peer(p)
    if bool((group.unique(return_counts=True)[1] == 1).any()) and not gives_zero:
        raise NotImplementedError(SINGLETON)


def rloo_advantage(x: Inputs, p: Params) -> Outputs:
    refuse_singletons(x["group"], p)
    advantages = leave_one_out(x["scores"], x["group"])
    if "ddof" in p:  # normalised over the batch: (A − mean) / (std + eps), the batch as one group
        advantages = group_advantages(advantages, torch.zeros_like(x["group"]), scale="std", eps=p["eps"])
    return {"advantages": advantages}


def reinforce_pp(x: Inputs, p: Params) -> Outputs:
    if "nemo" in peer(p):
        raise NotImplementedError(NO_RETURN_TO_GO)
    returns = reward_to_go(x["rewards"], x["mask"], gamma=p["gamma"])
    return {"returns": returns, "advantages": whiten(returns, x["mask"], **whitening(p))}


def reinforce_pp_baseline(x: Inputs, p: Params) -> Outputs:
    refuse_singletons(x["group"], p)
    per_row = group_advantages(x["scores"], x["group"], scale="none")
    return {"advantages": whiten(per_row[:, None] * x["mask"], x["mask"], **whitening(p))}


def openrlhf_pipeline(x: Inputs, p: Params) -> Outputs:
    mask, kl = x["mask"], x.get("kl")
    if kl is None and p.get("kl_coef"):
        kl = kl_estimate(x["logprobs"], x["ref_logprobs"], estimator=p.get("kl_estimator", "k1"))
    rewards = token_rewards(x["scores"], kl, mask, beta=p.get("kl_coef") or 0.0)
    match p["estimator"]:
        case "gae":
            advantages, returns = gae(rewards, x["values"], mask, gamma=p["gamma"], lam=p["lam"])
        case "reinforce":
            advantages = returns = reward_to_go(rewards, mask, gamma=p["gamma"])
        case other:
            raise NotImplementedError(f"openrlhf_pipeline with estimator {other!r} is not mapped")
    return {"returns": returns, "advantages": whiten(advantages, mask, **whitening(p))}


# --- losses -------------------------------------------------------------------------------------------------------

AGGREGATIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "sequence_sum",
}


def verl_total(name: str, mask: Tensor) -> float:
    """What each of verl's modes divides by: tokens, rows with a token, and for `norm` the width, not the rows."""
    rows = aggregation_total(mask, how="sequence_mean", constant=0.0)
    constant = float(mask.shape[1]) if name.endswith("norm") else rows
    return aggregation_total(mask, how=AGGREGATIONS[name], constant=constant)


def refuse_extreme_ratio(x: Inputs, p: Params) -> None:
    extreme = bool(((x["logprobs"] - x["old_logprobs"]).abs() * x["mask"] > LOG_RATIO_LIMIT).any())
    if extreme and not any(name in peer(p) for name in ("verl", "openrlhf")):
        raise NotImplementedError(CLAMPED)


def policy_loss_modes(x: Inputs, p: Params) -> Outputs:
    refuse_extreme_ratio(x, p)
    mask, out = x["mask"], {}
    logprobs = x["logprobs"].requires_grad_()
    for name, how in AGGREGATIONS.items():
        loss, metrics = policy_loss(
            logprobs,
            x["old_logprobs"],
            per_token(x["advantages"], mask),
            mask,
            surrogate="clip",
            epsilon=p["clip_low"],
            epsilon_high=p["clip_high"],
            dual_clip=p.get("dual_clip"),
            aggregation=how,
            total=verl_total(name, mask),
        )
        out[f"loss/{name}"] = loss.detach()
        out[f"grad_logprobs/{name}"] = torch.autograd.grad(loss, logprobs)[0]
    tokens = mask.sum()
    out["clipfrac"] = metrics["clipfrac"] / tokens
    out["clipfrac_dual"] = metrics.get("clipfrac_dual", torch.zeros_like(tokens)) / tokens
    old_to_new = kl_estimate(x["old_logprobs"], logprobs.detach(), estimator="k1")
    return out | {"approx_kl_k1": masked_mean(old_to_new, mask)}


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    return advantages if advantages.dim() == 2 else advantages[:, None] * mask


def trl_total(loss_type: str, mask: Tensor, p: Params) -> tuple[str, float]:
    rows, width = mask.shape
    match loss_type:
        case "grpo":  # TRL counts every row, empty ones too
            return "sequence_mean", float(rows)
        case "bnpo":
            return "token_mean", aggregation_total(mask, how="token_mean", constant=0.0)
        case "dr_grpo":
            return "sequence_sum", float(rows * p.get("max_completion_length", width))
        case "dapo":
            return "token_mean", float(p["num_items_in_batch"])
    raise NotImplementedError(f"TRL's loss_type {loss_type!r} is none of this project's aggregations")


def grpo_loss(x: Inputs, p: Params, *, how: str, total: float, beta: float, weighted: bool, level: str) -> Outputs:
    """Clipped surrogate plus beta times k3, both inside the same aggregation."""
    refuse_extreme_ratio(x, p)
    mask, logprobs = x["mask"], x["logprobs"].requires_grad_()
    policy, _ = policy_loss(
        logprobs,
        x["old_logprobs"],
        per_token(x["advantages"], mask),
        mask,
        surrogate="clip",
        epsilon=p.get("clip_low", p.get("epsilon")),
        epsilon_high=p.get("clip_high"),
        dual_clip=p.get("delta"),
        ratio_level=level,
        aggregation=how,
        total=total,
    )
    loss, out = policy, {"policy_objective": -policy.detach()}
    if "ref_logprobs" in x:
        penalty, metrics = kl_loss(
            logprobs,
            x["ref_logprobs"],
            mask,
            estimator="k3",
            aggregation=how,
            total=total,
            old_logprobs=x["old_logprobs"] if weighted else None,
        )
        loss = policy + beta * penalty
        out |= {"kl": penalty.detach(), "kl_metric": metrics["kl"] / mask.sum()}
    gradient = torch.autograd.grad(loss, logprobs)[0]
    return out | {"loss": loss.detach(), "grad_logprobs": gradient}


def trl_grpo_loss(x: Inputs, p: Params) -> Outputs:
    how, total = trl_total(p.get("loss_type", "grpo"), x["mask"], p)
    level = p.get("importance_sampling_level") or ("sequence" if "level=sequence" in peer(p) else "token")
    if p.get("beta") and level == "sequence" and p.get("use_bias_correction_kl"):
        raise NotImplementedError("the KL is weighted by token ratios here, never by a sequence's")
    weighted = bool(p.get("use_bias_correction_kl"))
    return grpo_loss(x, p, how=how, total=total, beta=p.get("beta") or 0.0, weighted=weighted, level=level)


def torchtune_grpo_loss(x: Inputs, p: Params) -> Outputs:
    total = aggregation_total(x["mask"], how="token_mean", constant=0.0)
    return grpo_loss(x, p, how="token_mean", total=total, beta=p["kl_coeff"], weighted=False, level="token")


def value_loss(x: Inputs, p: Params) -> Outputs:
    mask, out = x["mask"], {}
    values = x["values"].requires_grad_()
    for name, how in AGGREGATIONS.items():
        total = verl_total(name, mask)
        loss, metrics = value_loss_(
            values, x["old_values"], x["returns"], mask, clip=p.get("cliprange"), aggregation=how, total=total
        )
        out[f"loss/{name}"] = loss.detach()
        out[f"grad_values/{name}"] = torch.autograd.grad(loss, values)[0]
    return out | {"clipfrac": metrics["value_clipfrac"] / mask.sum()}


def reward_model_loss(inputs: dict[str, Any], p: Params) -> Outputs:
    if "chosen" in inputs:
        pairs = [list(pair) for pair in zip(inputs["chosen"], inputs["rejected"], strict=True)]
        scores, rank, group = flat(pairs, [[0, 1]] * len(pairs))
        return {"loss": pairwise_loss(scores, rank, group, margin=p.get("margin") or 0.0)[0]}
    scores, rank, group = flat(inputs["scores"], inputs["rank"])
    scores.requires_grad_()
    out = {}
    for average in ("prompts", "pairs"):
        loss, metrics = pairwise_loss(scores, rank, group, average=average, margin=p.get("margin") or 0.0)
        out[f"loss_mean_over_{average}"] = loss.detach()
        out[f"grad_mean_over_{average}"] = torch.autograd.grad(loss, scores)[0]  # flat: prompt after prompt
    return out | {"loss_per_prompt": metrics["per_prompt"], "pair_accuracy": metrics["correct"] / metrics["pairs"]}


def flat(scores: list[list[float]], rank: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged rows, one a prompt, as three vectors: scores, ranks and the prompt's id."""
    ids = [i for i, row in enumerate(scores) for _ in row]
    joined = [torch.tensor([one for row in rows for one in row]) for rows in (scores, rank)]
    return torch.tensor([s for row in scores for s in row], dtype=torch.float64), joined[1].long(), torch.tensor(ids)


# --- divergences --------------------------------------------------------------------------------------------------

ESTIMATORS = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
"""verl's older names."""


def kl(x: Inputs, p: Params) -> Outputs:
    logprobs = x["logprobs"].requires_grad_()
    values = estimate_as_peers(logprobs, x["ref_logprobs"], p)
    return {"kl": values.detach(), "grad_logprobs": torch.autograd.grad(values.sum(), logprobs)[0]}


def estimate_as_peers(logprobs: Tensor, ref_logprobs: Tensor, p: Params) -> Tensor:
    """The estimate, cut at ±10 where the peer cuts it."""
    estimator = ESTIMATORS.get(p["estimator"], p["estimator"])
    if estimator not in ("k1", "k2", "k3", "abs"):
        raise NotImplementedError(f"no KL estimator {estimator!r} here")
    clamps = (estimator == "k3" and "verl" in peer(p)) or any(name in peer(p) for name in ("openrlhf", "nemo"))
    return kl_estimate(logprobs, ref_logprobs, estimator=estimator, limit=10.0 if clamps else None)


def kl_reward(x: Inputs, p: Params) -> Outputs:
    scores = x["scores"].clamp(*p["score_clip"]) if p.get("score_clip") else x["scores"]
    # the KL of this group is verl's, whatever peer placed it
    verl = p | {"source": {"repo": "verl"}}
    values = estimate_as_peers(x["logprobs"], x["ref_logprobs"], verl)
    return {"rewards": token_rewards(scores, values, x["mask"], beta=p["kl_coef"])}


def kl_controller(x: Inputs, p: Params) -> Outputs:
    beta = p.get("init_kl_coef", p.get("kl_coef"))
    adaptive = p.get("target") is not None
    controller = AdaptiveKL(beta, target=p["target"], horizon=p["horizon"]) if adaptive else FixedKL(beta)
    after = []
    for measured, n in zip(x["current_kl"].tolist(), x["n_steps"].tolist(), strict=True):
        controller.update(measured, int(n))
        after.append(controller.value)
    return {"coef_after": torch.tensor(after, dtype=torch.float64)}


def entropy_(x: Inputs, p: Params) -> Outputs:
    values = entropy(x["logits"])
    mask = x.get("mask", torch.ones_like(values))
    total = aggregation_total(mask, how="token_mean", constant=0.0)
    return {"entropy": values, "entropy_token_mean": aggregate(values, mask, how="token_mean", total=total)}


def logprob(x: Inputs, p: Params) -> Outputs:
    return {"logprobs": select_logprobs(x["logits"], x["labels"], temperature=p.get("temperature", 1.0))}


def full_kl_(x: Inputs, p: Params) -> Outputs:
    policy, ref = x["logits"].log_softmax(-1), x["ref_logits"].log_softmax(-1)
    middle = torch.logaddexp(policy, ref) - torch.log(torch.tensor(2.0, dtype=policy.dtype))
    return {
        "kl_policy_ref": full_kl(policy, ref, direction="policy_ref"),
        "kl_ref_policy": full_kl(policy, ref, direction="ref_policy"),
        "jsd_half": (full_kl(policy, middle) + full_kl(ref, middle)) / 2,
    }


# --- whitening ----------------------------------------------------------------------------------------------------


def whiten_all(x: Inputs, p: Params) -> Outputs:
    return {"whitened": whiten(x["values"], x["mask"], shift_mean=p.get("shift_mean", True), **whitening(p))}


def whiten_rows(x: Inputs, p: Params) -> Outputs:
    rows = zip(x["values"].split(1), x["mask"].split(1), strict=True)
    return {"whitened": torch.cat([whiten(values, mask, **whitening(p)) for values, mask in rows])}


GROUPS: dict[str, Callable[..., Outputs]] = {
    "gae": gae_plain,
    "gae_whitened": gae_whitened,
    "trl_ppo_rollout_block": trl_ppo_rollout_block,
    "grpo_advantage": grpo_advantage,
    "rloo_advantage": rloo_advantage,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "openrlhf_pipeline": openrlhf_pipeline,
    "policy_loss": policy_loss_modes,
    "trl_grpo_loss": trl_grpo_loss,
    "torchtune_grpo_loss": torchtune_grpo_loss,
    "value_loss": value_loss,
    "reward_model_loss": reward_model_loss,
    "kl": kl,
    "kl_reward": kl_reward,
    "kl_controller": kl_controller,
    "entropy": entropy_,
    "logprob": logprob,
    "full_kl": full_kl_,
    "whiten": whiten_all,
    "whiten_rows": whiten_rows,
}
