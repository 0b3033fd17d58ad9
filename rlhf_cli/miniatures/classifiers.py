"""Mini RoBERTa sentiment classifiers: one raised on snippets, a bigger one on whole reviews and their parts."""

import math
import random
import re
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

from rlhf_cli.data.labelled import Labelled
from rlhf_cli.data.lexicon import vader_labels
from rlhf_cli.data.reviews import SENTIMENTS, Review, Sentiment
from rlhf_cli.miniatures.optimize import descend
from rlhf_cli.preferences import classify

LEARNING_RATE = 4e-3


def new_classifier(name: str, vocabulary: int) -> Any:
    """id2label as in the hub models' configs; the order is theirs, users look classes up by name."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    large = name == "roberta_large"
    size = 128 if large else 64
    options: dict[str, Any] = {
        "num_labels": 3,
        "id2label": dict(enumerate(SENTIMENTS)),
        "label2id": {label: i for i, label in enumerate(SENTIMENTS)},
    }
    config = RobertaConfig(
        **options,
        vocab_size=vocabulary,
        hidden_size=size,
        num_hidden_layers=3 if large else 2,
        num_attention_heads=4,
        intermediate_size=4 * size,
        max_position_embeddings=514,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return RobertaForSequenceClassification(config)


LONGEST = 50
"""Words of a training text whose sentences a lexicon labels: as long as a prefix and its continuation."""


def sentences_of(review: Review) -> list[Labelled]:
    """Its sentences with the source's labels, or VADER's where the source labels whole reviews only."""
    if review.sentences:
        return list(zip(review.sentences, review.sentence_labels, strict=True))
    sentences = [" ".join(s.split()[:LONGEST]) for s in re.split(r"(?<=[.!?])\s+", review.text) if s]
    return list(zip(sentences, vader_labels(sentences), strict=True))


def snippets(reviews: list[Review], *, seed: int) -> list[Labelled]:
    """Single sentences and their first 4 to 16 words (as tweets are short)."""
    rng = random.Random(f"{seed}/snippets")
    texts = []
    for review in reviews:
        sentences = sentences_of(review)
        for sentence in (sentences[0], rng.choice(sentences)):
            texts += [sentence, _opening(review, *sentence, rng)]
    return texts


def whole_reviews(reviews: list[Review], *, seed: int) -> list[Labelled]:
    """Reviews up to some sentence by their verdict so far, and openings of sentences."""
    rng = random.Random(f"{seed}/whole")
    texts = []
    for review in reviews:
        sentences = sentences_of(review)
        longest = math.inf if review.sentences else LONGEST
        fitting = max(1, sum(words <= longest for words in accumulate(len(text.split()) for text, _ in sentences)))
        for count in (fitting, rng.randint(1, fitting)):
            part = sentences[:count]
            whole = count == len(sentences) and bool(review.sentences)
            verdict = review.label if whole and review.label else _verdict(part)
            texts.append((" ".join(text for text, _ in part), verdict))
        texts += [_opening(review, *sentences[0], rng), _opening(review, *rng.choice(sentences), rng)]
    return texts


def _opening(review: Review, text: str, label: Sentiment, rng: random.Random) -> Labelled:
    """The first words of a sentence, by the sentence's label; by their own where a lexicon gives the labels."""
    opening = " ".join(text.split()[: rng.choice([4, 5, 6, 10, 12, 14, 16])])
    return opening, label if review.sentences else vader_labels([opening])[0]


def _verdict(sentences: list[Labelled]) -> Sentiment:
    """The later half decides; neutral where it says nothing."""
    late = [label for _, label in sentences[-max(1, (len(sentences) + 1) // 2) :] if label != "neutral"]
    return late[-1] if late else "neutral"


def fit(
    model: Any, tokenizer: Any, texts: list[Labelled], *, steps: int, batch: int, seed: int, tick: Callable[[], None]
) -> None:
    """As `rlhf classifier-train` does, but from random weights, which Muon brings further in the same time."""
    how = partial(descend, steps=steps, lr=LEARNING_RATE, tick=tick)
    classify.fit(model, tokenizer, texts, SENTIMENTS, descend=how, batch=batch, seed=seed, limit=200)


def accuracy(model: Any, tokenizer: Any, texts: list[Labelled]) -> float:
    """The share of the texts whose likeliest class is their label."""
    return classify.examine(model, tokenizer, texts, SENTIMENTS, limit=512, batch=64).accuracy
