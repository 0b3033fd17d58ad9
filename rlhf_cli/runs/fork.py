"""A new run from another one's policy, and what a run is called."""

from collections.abc import Callable
from pathlib import Path

from rlhf_cli.build.experiment import NOTHING_SAVED, Saved
from rlhf_cli.config.schema import Config
from rlhf_cli.runs.catalogue import default_name
from rlhf_cli.runs.checkpoint import find_checkpoint


def forked(config: Config, notify: Callable[[str], None]) -> Saved:
    """The models that `from=` names: its policy, and its critic where there is one.

    The reference model stays the actor that the other run began with: val/kl counts from there. To count from the
    checkpoint, give it as the actor instead: actor.path=<checkpoint>/actor.
    """
    if config.from_ is None:
        return NOTHING_SAVED
    found = find_checkpoint(config.from_, notify)
    notify(f"a new run from the policy of {found}")
    critic = found / "critic"
    own = config.algo.needs_critic and config.critic.name != "shared" and critic.is_dir()
    return Saved(actor=str(found / "actor"), critic=str(critic) if own else None)


def called(config: Config, folder: Path, group: str | None) -> str:
    """`name=`, or one that reads; of a sweep's job also its number."""
    told = default_name(config.model_dump(by_alias=True))
    return config.name or (f"{told} ({folder.name})" if group else told)
