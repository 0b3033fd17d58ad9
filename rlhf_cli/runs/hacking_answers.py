"""What a run does about reward hacking: a record of its answers, so that a resumed run goes on with them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.engine import processes
from rlhf_cli.rl.algorithm import Algorithm
from rlhf_cli.runs.checkpoint import all_of, step_of
from rlhf_cli.runs.status import write_atomic

FILE = "hacking_answers.json"
LEAST_BETA = 0.01
"""From a beta of 0 no factor leads anywhere."""


@dataclass
class Answers:
    """`kind`: false | warn | raise_beta | rollback | stop. `given`: so far, each {"answer", "step", "onset", "beta",
    "to"}: beta from there on, and the checkpoint's step that a rollback went back to."""

    folder: Path
    kind: str
    factor: float
    most: int
    given: list[dict[str, Any]]

    @staticmethod
    def of(folder: Path, *, kind: bool | str, factor: float, most: int, start: int | None) -> "Answers":
        """Those that the run in this folder gave up to the step `start` that it goes on from (None: it begins); later
        ones will be given again. `kind` true means stop."""
        file, given = folder / FILE, []
        if start is not None and file.is_file():
            given = [a for a in json.loads(file.read_text(encoding="utf-8")) if _from(a) <= start]
        told = kind if isinstance(kind, str) else "stop" if kind else "false"
        return Answers(folder, told, factor, most, given)

    @property
    def saves_before(self) -> bool:
        """Whether a checkpoint of each unsuspicious validation is needed, and none after."""
        return self.kind in ("stop", "rollback")

    @property
    def last(self) -> int:
        """Validations up to this step have been answered: of a rollback, up to where it went back to."""
        return max(map(_from, self.given[-1:]), default=-1)

    def next(self) -> str:
        """The answer to an onset now; what is used up becomes a stop."""
        if self.kind in ("raise_beta", "rollback") and len(self.given) >= self.most:
            return "stop" if self.kind == "rollback" else "warn"
        return self.kind

    def raised(self, algo: Algorithm) -> float:
        """Raise the KL penalty's weight; the new one."""
        algo.beta.value = max(LEAST_BETA, algo.beta.value * self.factor)
        return algo.beta.value

    def catch_up(self, algo: Algorithm, known: int) -> None:
        """After a checkpoint was loaded that knew of `known` answers."""
        for _ in self.given[known:]:
            self.raised(algo)

    def note(self, answer: str, *, step: int, onset: int, beta: float, to: int | None = None) -> None:
        """Known to every process of the run, written by the first."""
        self.given.append({"answer": answer, "step": step, "onset": onset, "beta": beta, "to": to})
        if processes.is_first():
            write_atomic(self.folder / FILE, json.dumps(self.given, indent=1) + "\n")

    def back_to(self, onset: int) -> Path | None:
        """The newest checkpoint from before the onset; those after it are removed, what was logged since is kept in
        metrics_rolled_back_<number>.jsonl and samples_rolled_back_<number>.jsonl."""
        saved = all_of(self.folder)
        before = [place for place in saved if step_of(place) < onset]
        if not before:
            return None
        for place in saved:
            if step_of(place) >= onset:
                shutil.rmtree(place)
        for name in ("metrics", "samples"):
            kept = self.folder / f"{name}.jsonl"
            if kept.is_file():
                shutil.copy(kept, self.folder / f"{name}_rolled_back_{len(self.given) + 1}.jsonl")
        return max(before, key=step_of)


def _from(answer: dict[str, Any]) -> int:
    """The step after which an answer holds."""
    return int(answer["step"] if answer["to"] is None else answer["to"])
