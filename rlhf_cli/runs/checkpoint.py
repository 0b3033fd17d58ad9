"""Checkpoints: plain Hugging Face folders beside the trainer's state, written atomically."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.build.experiment import Experiment
from rlhf_cli.config.errors import UserError
from rlhf_cli.config.schema import Config
from rlhf_cli.engine import lora, processes
from rlhf_cli.runs.status import write_atomic
from rlhf_cli.training.policy import models

MANIFEST = "manifest.json"


def save_checkpoint(
    run: Path, step: int, experiment: Experiment, extra: dict[str, Any], *, merge: bool = False
) -> Path:
    """Write checkpoints/step_000120 (temporary name, manifest, fsync, rename), then `checkpoints/last`.

    `extra`: further fields of its state.json. `merge`: adapters, added to the weights, in actor_merged/ too. If that
    fails, nothing of it is left, and earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step_{step:06d}"
    trainer = trainer_state(experiment)  # a collective call: every process holds a part of a sharded model
    learned = models(experiment.policy, experiment.critic, experiment.reference)
    weights = [processes.whole_weights(model) for model in learned]
    if not processes.is_first():
        return folder
    temporary = folder.with_name(f".tmp_{folder.name}")
    for left_by_a_killed_run in folder.parent.glob(".tmp_*"):
        shutil.rmtree(left_by_a_killed_run)
    temporary.mkdir(parents=True)
    try:
        _write(temporary, experiment, weights, merge=merge)
        torch.save(trainer, temporary / "trainer.pt")
        (temporary / "state.json").write_text(json.dumps({"step": step, **extra}), encoding="utf-8")
        _seal(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        _sync(folder.parent)
        write_atomic(folder.parent / "last", folder.name + "\n")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def trainer_state(experiment: Experiment) -> dict[str, Any]:
    """Everything but the models' weights. Random numbers are functions of (seed, step): nothing to save."""
    policy, critic = experiment.policy, experiment.critic
    own = critic.optimizer if critic else None
    return {
        "actor_optimizer": policy.optimizer.state_dict() if policy.optimizer else None,
        "critic_optimizer": own.state_dict() if own else None,
        "reward_moments": moments.state_dict() if (moments := experiment.reward.moments) else None,
        "rows": {"micro_batch": policy.micro_batch_size, "fits": policy.memory.fits},
        **experiment.algo.state_dict(),
    }


def restore_trainer(experiment: Experiment, trainer: dict[str, Any]) -> None:
    policy, critic = experiment.policy, experiment.critic
    if policy.optimizer:
        policy.optimizer.load_state_dict(trainer["actor_optimizer"])
    if critic and critic.optimizer:
        critic.optimizer.load_state_dict(trainer["critic_optimizer"])
    experiment.algo.load_state_dict(trainer)
    if rows := trainer.get("rows"):  # sums in another order end in other digits
        policy.micro_batch_size = rows["micro_batch"]
        policy.memory.fits |= rows["fits"]
    if experiment.reward.moments and (seen := trainer.get("reward_moments")):
        experiment.reward.moments.load_state_dict(seen)


def _write(temporary: Path, experiment: Experiment, weights: list[dict[str, Any]], *, merge: bool) -> None:
    """The models, each in a folder of its own. The reference model only where it is refreshed."""
    (actor, critic, reference), policy = weights, experiment.policy
    if lora.adapters_of(policy.model) is None:
        policy.model.save_pretrained(temporary / "actor", **actor)
    else:
        lora.save(policy.model, temporary / "actor")
    if merge and lora.adapters_of(policy.model) is not None:
        policy.model.save_pretrained(temporary / "actor_merged", state_dict=lora.merged_state(policy.model))
        policy.tokenizer.save_pretrained(temporary / "actor_merged")
    policy.tokenizer.save_pretrained(temporary / "actor")
    if experiment.critic is not None:
        experiment.critic.model.save_pretrained(temporary / "critic", **critic)
    if experiment.outer is not None:
        experiment.reference.save_pretrained(temporary / "reference", **reference)
        experiment.outer.save(temporary)


def _seal(temporary: Path) -> None:
    """Write the manifest, with the size and SHA-256 of every file, and fsync all."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): _identity(path) for path in files}
    write_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1))
    for path in (temporary, *temporary.rglob("*")):
        _sync(path)


def prune(run: Path, *, keep_last: int | None, keep_every: int, best: int | None) -> None:
    """Delete all checkpoints but the last so many (None: all are kept), those of every so many steps, and the best."""
    folders = all_of(run)
    for folder in folders[:-keep_last] if keep_last else []:
        step = step_of(folder)
        if step == best or (keep_every and step % keep_every == 0):
            continue
        doomed = folder.with_name(f".tmp_{folder.name}")  # never a torn checkpoint under its own name
        folder.rename(doomed)
        shutil.rmtree(doomed)


def checkpoint_bytes(experiment: Experiment) -> int:
    """An estimate: weights, and AdamW's two moments of each trained one."""
    actor, critic, reference = models(experiment.policy, experiment.critic, experiment.reference)
    trained = [model for model in (actor, critic) if model is not None]
    moments = experiment.policy.optimizer.moments if experiment.policy.optimizer else 8
    size = sum(p.numel() * (p.element_size() + moments) for model in trained for p in lora.learned(model))
    if experiment.outer is not None:
        size += sum(p.numel() * p.element_size() for p in reference.parameters())
    return size


def check_room(run: Path, experiment: Experiment, config: Config, *, start: int) -> None:
    """Raise UserError where the checkpoints still to come do not fit on the disk."""
    wanted = config.checkpoint
    to_come = 1 + ((config.steps - 1) // wanted.every - start // wanted.every if wanted.every else 0)
    kept = to_come
    if wanted.keep_last:
        spared = config.steps // wanted.keep_every if wanted.keep_every else 0
        kept = min(to_come, wanted.keep_last + 1 + spared)  # a new one is written before an old one goes
    kept += wanted.best is not None
    each, free = checkpoint_bytes(experiment), shutil.disk_usage(run).free
    if each * kept > free:
        raise UserError(
            f"{kept} checkpoints of {each / 1e9:.2g} GB each do not fit in the {free / 1e9:.2g} GB that are free in "
            f"{run}: keep fewer (checkpoint.keep_last=1), save less often (checkpoint.every=), or choose another "
            "hydra.run.dir="
        )


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a file-size limit caused an error: libraries hide the errno."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(sign in str(error) for sign in ("No space left", "Disk quota", "File too large", "StreamWriter failed")):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there, with its size and hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(_identity(folder / name) == known for name, known in manifest.items())
    except (OSError, ValueError, AttributeError):  # not JSON, or JSON that is no table
        return False


def all_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first, whole or not; other folders that lie there (a copy, say) are none."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdigit())


def newest(run: Path, notify: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; torn ones are passed over with a message."""
    for folder in reversed(all_of(run)):
        if is_whole(folder):
            return folder
        notify(f"{folder.name} is torn or incomplete: the checkpoint before it is used")
    return None


def step_of(checkpoint: Path) -> int:
    """120 for checkpoints/step_000120; 0 for a folder that was named otherwise since."""
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isdigit() else 0


def find_checkpoint(place: str, notify: Callable[[str], None]) -> Path:
    """A checkpoint folder, from itself or from its run folder (then the newest), checkpoints/ or checkpoints/last."""
    folder = Path(place).expanduser()
    if folder.name == "last" and folder.is_file():
        folder = folder.parent
    if folder.name == "checkpoints":
        folder = folder.parent
    if folder.name == "actor" and (folder / "config.json").is_file():
        folder = folder.parent
    if (folder / "actor").is_dir():
        if (folder / MANIFEST).exists() and not is_whole(folder):
            raise UserError(f"checkpoint={place} is torn: its files are not those that were saved; give another one")
        return folder
    found = newest(folder, notify)
    if found is None:
        raise UserError(f"checkpoint={place}: no whole checkpoint is there")
    return found


def load_trainer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainer state, {"step", …}); weights-only loading: no code runs."""
    try:
        trainer = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{folder / 'trainer.pt'} is no trainer state of plain tensors: {first}") from error
    return trainer, json.loads((folder / "state.json").read_text(encoding="utf-8"))


def _identity(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
