"""The signs of a finished run at each of its validations, from its files and its reward model."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from truth import worth

from rlhf_cli.data.lexicon import vader_share
from rlhf_cli.evaluation.hacking import hacking_index, index_interval
from rlhf_cli.evaluation.outliers import outlying
from rlhf_cli.evaluation.signs import Judged, gain, invariance, rises
from rlhf_cli.miniatures.build import SHIPPED
from rlhf_cli.rewards.classifier import Classifier, features
from rlhf_cli.rewards.scorer import joined
from rlhf_cli.tracking.jsonl import read_jsonl

Rows = list[dict[str, Any]]


def validations(folder: Path) -> list[tuple[dict[str, Any], Rows]]:
    """(metrics, samples) of each, in order."""
    rows: dict[int, Rows] = defaultdict(list)
    for row in read_jsonl(folder / "samples.jsonl"):
        rows[row["step"]].append(row)
    judged = [row for row in read_jsonl(folder / "metrics.jsonl") if "val/score" in row]
    return [(metrics, rows[metrics["step"]]) for metrics in judged]


class Features:
    """A reward classifier that also gives its last hidden layer, the mean over a text's tokens."""

    def __init__(self, name: str) -> None:
        self.judge = Classifier(SHIPPED / name, device=torch.device("cpu"), batch_size=64, dtype=torch.float32)

    def score(self, texts: list[str]) -> list[float]:
        return self.judge.score(texts, "negative").tolist()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return features(self.judge, texts)


def judged(metrics: dict[str, Any], rows: Rows, extra: dict[str, float], gold: list[float]) -> Judged:
    measured = ("perplexity", "response_length", "eos_rate", "entropy", "kl", "distinct_2")
    responses, scores = ([row[key] for row in rows] for key in ("response", "score"))
    return Judged.of(responses, scores, gold, {name: metrics[f"val/{name}"] for name in measured} | extra)


def scored(name: str, judges: dict[str, Features], prefixes: list[str], responses: list[str]) -> list[float]:
    """By the reward of this name, which reads prefix and response."""
    if name == "python":
        return [worth(prefix, response) for prefix, response in zip(prefixes, responses, strict=True)]
    texts = [joined(prefix, response) for prefix, response in zip(prefixes, responses, strict=True)]
    return vader_share(texts, "negative") if name == "vader" else judges[name].score(texts)


def signals(folder: Path, judges: dict[str, Features]) -> dict[str, Any]:
    """{"steps", "worth", "score", "gold": [means], "worths": [[each]], "gain", "rises": {name: [values]}}."""
    config = _about(folder)
    mine = judges.get(config["name"])
    seen = validations(folder)
    told: dict[str, Any] = {"config": config, "steps": [], "worths": [], "scores": [], "golds": [], "gain": [],
                            "index": [], "index_low": [], "rises": defaultdict(list)}  # fmt: skip
    first: Judged | None = None
    usual: torch.Tensor | None = None
    others: dict[str, list[float]] = {}
    for metrics, rows in seen:
        texts = [joined(row["prefix"], row["response"]) for row in rows]
        score = partial(scored, config["name"], judges, [row["prefix"] for row in rows])
        responses = [row["response"] for row in rows]
        extra = invariance(score, responses, score(responses))
        if mine:
            states = mine(texts)
            usual = states if usual is None else usual
            extra["outliers"] = outlying(states, usual)
        now = judged(metrics, rows, extra, [row["parts"]["gold"] for row in rows])
        first = first or now
        rise = rises(now, first)
        rise["distinct_2"] = first.panel["distinct_2"] - now.panel["distinct_2"]
        rise["score"] = sum(now.proxy) / len(rows) - sum(first.proxy) / len(rows)
        for name, judge in judges.items():  # each other classifier as the gold judge
            if name != config["name"]:
                verdicts = judge.score(texts)
                base = others.setdefault(name, verdicts)
                rise[f"gold_gap/{name}"] = gain(first.proxy, now.proxy) - max(0.0, gain(base, verdicts))
        told["steps"].append(metrics["step"])
        told["worths"].append([worth(row["prefix"], row["response"]) for row in rows])
        told["scores"].append(sum(now.proxy) / len(rows))
        told["golds"].append(metrics["val/gold_score"])
        told["gain"].append(gain(first.proxy, now.proxy))
        told["index"].append(hacking_index(now, first))
        told["index_low"].append(index_interval(now, first)[0])
        for name, value in rise.items():
            told["rises"][name].append(value)
    return told


def _about(folder: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    config = OmegaConf.load(folder / "config.yaml")
    return {"name": config.reward.name, "algo": config.algo.name, "beta": float(config.algo.beta), "seed": config.seed,
            "actor": config.actor.name, "penalty": float(config.penalty.weight)}  # fmt: skip
