"""What changes as a run goes on, and what a checkpoint must hold."""

from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.config.schema import Config
from rlhf_cli.engine.value_head import SharedCritic
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.controllers import AdaptiveKL, DoublingKL, FixedKL
from rlhf_cli.training.setup import Lab, algorithm
from rlhf_cli.training.update import Learner, TrustRegion


@dataclass
class State:
    algorithm: Algorithm
    actor: Learner
    critic: Learner | SharedCritic | None
    kl: FixedKL | AdaptiveKL
    kl_old: FixedKL | DoublingKL
    trust: TrustRegion | None
    seen: dict[str, Any] = field(default_factory=dict)
    """What the step under way learns from, for a dump: rollout, texts, rewards, experience."""

    def drop_gradients(self) -> None:
        """After an update that broke off: ready to sample."""
        for learner in (self.actor, self.critic):
            if isinstance(learner, Learner):
                learner.forget()
                learner.model.eval()

    def trainer(self) -> dict[str, Any]:
        """Everything but the models' weights. Random numbers are functions of (seed, step): nothing to save."""
        return {
            "actor_optimizer": self.actor.memory(),
            "critic_optimizer": self.critic.memory() if isinstance(self.critic, Learner) else None,
            "kl": self.kl.state_dict(),
            "kl_old": self.kl_old.state_dict(),
        }

    def restore(self, trainer: dict[str, Any]) -> None:
        self.actor.remember(trainer["actor_optimizer"])
        if isinstance(self.critic, Learner):
            self.critic.remember(trainer["critic_optimizer"])
        self.kl.load_state_dict(trainer["kl"])
        self.kl_old.load_state_dict(trainer["kl_old"])


def make_state(config: Config, lab: Lab) -> State:
    optim, algo = config.optim, config.algo
    shared = lab.critic if isinstance(lab.critic, SharedCritic) else None
    also = list(shared.score.parameters()) if shared else []
    actor = Learner(lab.actor, optim.actor_lr, optim.weight_decay, optim.max_grad_norm, also)
    critic: Learner | SharedCritic | None = shared
    if lab.critic is not None and not shared:
        critic = Learner(lab.critic, optim.critic_lr, optim.weight_decay, optim.max_grad_norm)
    kl: FixedKL | AdaptiveKL = FixedKL(algo.beta)
    if algo.beta_target is not None:
        kl = AdaptiveKL(algo.beta, target=algo.beta_target, horizon=algo.beta_horizon)
    kl_old: FixedKL | DoublingKL = FixedKL(algo.beta_old)
    if algo.beta_old_target is not None:
        kl_old = DoublingKL(algo.beta_old, target=algo.beta_old_target)
    trust = None
    if algo.update == "trust_region":
        trust = TrustRegion(algo.delta, algo.damping, algo.cg_steps, algo.line_search_steps)
    return State(algorithm(config), actor, critic, kl, kl_old, trust)
