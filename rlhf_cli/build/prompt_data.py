"""From a checked config to prompts, and to the texts of the pretraining mix."""

from collections.abc import Callable
from typing import Any

from rlhf_cli.build.paths import classifier_path, kept_in
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.data.lexicon import vader_labels
from rlhf_cli.data.prompts import CONTROL
from rlhf_cli.data.reviews import Sentiment
from rlhf_cli.engine.device import Compute
from rlhf_cli.engine.load import context_length
from rlhf_cli.rewards.classifier import Classifier
from rlhf_cli.training.pretraining import Pretraining


def pretraining(config: Config, tokenizer: Any, tested: set[str]) -> Pretraining | None:
    """The texts of the pretraining mix: reviews of `algo.ptx_source`, or of the prompts' source without those `tested`.

    With algo.ptx=0 and a source they are only measured, so that a run without the mix has a curve to compare with.
    """
    from rlhf_cli.data.sources import load_reviews

    algo = config.algo
    if not algo.ptx and algo.ptx_source is None:
        return None
    source = algo.ptx_source or config.data.source
    reviews = load_reviews(source, seed=config.data.seed, limit=PTX_TEXTS)
    unseen = [r.text for r in reviews if source != config.data.source or r.id not in tested]
    made = Pretraining.make(unseen, tokenizer, weight=algo.ptx, batch_size=algo.ptx_batch_size, seed=config.seed)
    if not made.held_out:
        usable = len(made.texts) + len(made.held_out)
        raise UserError(
            f"algo.ptx_source={source}: the pretraining mix needs two texts of two tokens at least; of {len(unseen)} "
            f"texts that no test prompt comes from, {usable} have them"
        )
    return made


PTX_TEXTS = 2000


def prefixes(config: Config, where: Compute, notify: Callable[[str], None]) -> Any:
    """The balanced prefix data set (a `datasets.DatasetDict`), from the cache or built now."""
    from rlhf_cli.data.prefixes import load_prefixes

    data = config.data
    identity = classifier_path(data.labeler, config, notify) if data.labeler != "vader" else "vader"

    def label(texts: list[str]) -> list[Sentiment]:
        if data.labeler == "vader":
            return vader_labels(texts)
        notify(f"labelling {len(texts)} prefixes with {data.labeler}")
        judge = Classifier(identity, device=where.device, batch_size=config.reward.batch_size, dtype=where.dtype)
        return judge.labels(texts)

    with kept_in(config.cache_dir) as cache:
        found = load_prefixes(
            data.source,
            min_words=data.min_words,
            max_words=data.max_words,
            unit=data.unit,
            train=data.train,
            test=data.test,
            seed=data.seed,
            labeler=identity,
            label=label,
            cache_dir=cache,
        )
    say_control(found, config.prompt.escape, notify)
    return found


def say_control(found: Any, escaped: bool, notify: Callable[[str], None]) -> None:
    """A line where prefixes hold what a tokenizer takes for control tokens."""
    held = [match[0] for rows in found.values() for row in rows["prefix"] if (match := CONTROL.search(row))]
    if held:
        read = "text (prompt.escape=true)" if escaped else "control tokens; as text: prompt.escape=true"
        notify(f"{len(held)} prefixes hold special tokens such as {held[0]}, which are read as {read}")


def check_fit(model: Any, prompts: list[list[int]], response: int) -> None:
    """Raise UserError where a prompt is empty, prompt and response exceed the model's context, or the tokenizer its
    vocabulary."""
    if not all(prompts):
        raise UserError("a prompt is empty, and the actor needs a token to begin with: give it words, or prompt=chat")
    longest, context = max(map(len, prompts)), context_length(model)
    if context is not None and longest + response > context:
        raise UserError(
            f"the longest prompt ({longest} tokens) and rollout.max_response_length={response} do not fit in the "
            f"actor's context of {context} tokens: lower rollout.max_response_length or data.max_words, or shorten "
            "prompt.user"
        )
    known = model.get_input_embeddings().weight.shape[0]
    if (largest := max(map(max, prompts))) >= known:
        raise UserError(
            f"the tokenizer gives the token {largest}, and the actor knows {known}: tokenizer and weights are of "
            "different models"
        )


def balanced(rows: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` rows, taken from the classes in turn."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    turns = max(map(len, by_class.values()))
    return [by_class[c][i] for i in range(turns) for c in sorted(by_class) if i < len(by_class[c])][:count]
