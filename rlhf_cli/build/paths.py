"""Which folder or hub id a name in the config stands for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import UserError
from rlhf_cli.config.folders import check_writable
from rlhf_cli.config.reward_schema import Model
from rlhf_cli.config.schema import Config, RewardTrainConfig
from rlhf_cli.config.weights import find

MINIATURE_SEED = 0
"""The miniatures are fixed, as hub models are: a run's seed does not change its starting point."""

CLASSIFIERS = {
    "roberta_large": "j-hartmann/sentiment-roberta-large-english-3-classes",
    "roberta_base": "cardiffnlp/twitter-roberta-base-sentiment-latest",
}


def model_path(model: Any, config: Config, notify: Callable[[str], None]) -> str:
    """A folder or hub id: what was typed, else the miniature (shipped, or built) at mini scale, else a classifier that
    is fine-tuned here, or weights wherever they are. Raises UserError where there are none."""
    from rlhf_cli.miniatures.build import MINIATURES

    if model.path:
        return str(model.path)
    if config.scale == "mini" and model.name in MINIATURES:
        return miniature_path(model.name, config, notify)
    if getattr(model, "fine_tune", None):
        from rlhf_cli.build.fine_tuned import fine_tuned

        with kept_in(config.cache_dir) as cache:
            return fine_tuned(model, config, cache, notify)
    if config.scale == "mini":
        raise UserError(
            f"{model.name} has no miniature (they are {', '.join(MINIATURES)}): type scale=small, or give its weights "
            "(actor.path=, critic.path=, reward.path=)"
        )
    if config.scale == "full" and not model.package:
        return str(model.hub)
    return find(model.name, str(model.hub), model.package).path


def critic_path(config: Config, actor: str, notify: Callable[[str], None]) -> str:
    """The critic's model; one named as the actor follows it to the folder that was typed for the actor."""
    follows = config.critic.path is None and config.critic.name == config.actor.name
    return actor if follows else model_path(config.critic, config, notify)


def source_of_miniatures(config: Config) -> str:
    """The reviews that the miniatures know."""
    return "generated" if config.data.source == "imdb" else config.data.source


def miniature_path(name: str, config: Config, notify: Callable[[str], None]) -> str:
    """The miniature's folder: shipped, or built from the reviews of data.source."""
    from rlhf_cli.miniatures.build import miniature

    source = source_of_miniatures(config)
    with kept_in(config.cache_dir) as cache:
        return str(miniature(name, source=source, cache_dir=cache, seed=MINIATURE_SEED, notify=notify))


@contextmanager
def kept_in(cache_dir: str) -> Iterator[Path]:
    """The cache folder; one that cannot be written is reported when something is to be written there, not before."""
    try:
        yield Path(cache_dir).expanduser()
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        check_writable(cache_dir, "cache_dir")
        raise error


def classifier_path(name: str, config: Config, notify: Callable[[str], None]) -> str:
    """Of a named classifier at this run's scale; other names are folders or hub ids already."""
    if name not in CLASSIFIERS:
        return name
    return model_path(Model(name=name, hub=CLASSIFIERS[name], path=None), config, notify)


def trunk_path(config: RewardTrainConfig, notify: Callable[[str], None]) -> str:
    """Where a new reward model starts: what was typed, else the judge's model, else (it has none) roberta_large."""
    judge = config.reward
    if config.reward_train.start or not (judge.path or judge.hub):
        return classifier_path(config.reward_train.start or "roberta_large", config, notify)
    return model_path(judge, config, notify)
