"""What changes as a run goes on, and what a checkpoint must hold."""

from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.schema import Config
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.rl.controllers import AdaptiveKL, FixedKL
from rlhf_cli.training.setup import Lab, algorithm
from rlhf_cli.training.update import Learner


@dataclass
class State:
    algorithm: Algorithm
    actor: Learner
    critic: Learner | None
    kl: FixedKL | AdaptiveKL

    def trainer(self) -> dict[str, Any]:
        """Everything but the models' weights. Random numbers are functions of (seed, step): nothing to save."""
        return {
            "actor_optimizer": self.actor.optimizer.state_dict(),
            "critic_optimizer": self.critic.optimizer.state_dict() if self.critic else None,
            "kl": self.kl.state_dict(),
        }

    def restore(self, trainer: dict[str, Any]) -> None:
        self.actor.optimizer.load_state_dict(trainer["actor_optimizer"])
        if self.critic is not None:
            self.critic.optimizer.load_state_dict(trainer["critic_optimizer"])
        self.kl.load_state_dict(trainer["kl"])


def make_state(config: Config, lab: Lab) -> State:
    optim, algo = config.optim, config.algo
    critic = None
    if lab.critic is not None:
        critic = Learner(lab.critic, optim.critic_lr, optim.weight_decay, optim.max_grad_norm)
    kl: FixedKL | AdaptiveKL = FixedKL(algo.beta)
    if algo.beta_target is not None:
        kl = AdaptiveKL(algo.beta, target=algo.beta_target, horizon=algo.beta_horizon)
    return State(
        algorithm=algorithm(config),
        actor=Learner(lab.actor, optim.actor_lr, optim.weight_decay, optim.max_grad_norm),
        critic=critic,
        kl=kl,
    )
