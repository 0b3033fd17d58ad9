"""From a checked config to the algorithm: choices and coefficients by their own names."""

from dataclasses import fields

from rlhf_cli.config.algo_schema import Algo
from rlhf_cli.config.dotted import function_named
from rlhf_cli.config.schema import Config
from rlhf_cli.rl.algorithm import Algorithm, TrustRegion
from rlhf_cli.rl.controllers import AdaptiveKL, DoublingKL, FixedKL

BUILT = {"surrogate", "beta", "beta_old", "trust_region", "max_length", "refill_tries"}
"""Fields that are built here, not copied from the config."""


def algorithm(config: Config) -> Algorithm:
    algo = config.algo
    named = {f.name: getattr(algo, f.name) for f in fields(Algorithm) if f.name not in BUILT}
    if config.reward.combine == "normalised_sum":  # its parts are normalised in their groups; twice would undo GDPO
        named["group_scale"] = "none"
    return Algorithm(
        **named,
        surrogate=function_named(algo.loss, "algo.loss", arguments=4) if algo.loss else algo.surrogate,
        beta=_beta(algo),
        beta_old=_beta_old(algo),
        trust_region=_trust_region(algo),
        max_length=config.rollout.max_response_length,
        refill_tries=algo.refill_tries if algo.filter == "refill" else 0,
    )


def _beta(algo: Algo) -> FixedKL:
    if algo.beta_target is None:
        return FixedKL(algo.beta)
    return AdaptiveKL(algo.beta, target=algo.beta_target, horizon=algo.beta_horizon)


def _beta_old(algo: Algo) -> FixedKL:
    if algo.beta_old_target is None:
        return FixedKL(algo.beta_old)
    return DoublingKL(algo.beta_old, target=algo.beta_old_target)


def _trust_region(algo: Algo) -> TrustRegion | None:
    if algo.update != "trust_region":
        return None
    return TrustRegion(algo.delta, algo.damping, algo.cg_steps, algo.line_search_steps)
