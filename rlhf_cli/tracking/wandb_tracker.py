"""Weights & Biases: the mirror of metrics.jsonl. It must never stop a run: no prompt, no crash, no long wait."""

import netrc
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rlhf_cli.tracking.text import printable

CONNECT_SECONDS = 2.0
INIT_SECONDS = 20.0
COLUMNS = ("step", "input", "output", "score", "class")
# Names of credentials; not every *_token, since those are mostly tokens of text here.
SECRET = re.compile(r"(^|_)(api_?key|secret|password|passwd)$|^((hf|auth|access|bearer)_)?token$", re.IGNORECASE)


class WandbTracker:
    """One W&B run, stored under `<folder>/wandb`.

    `mode="wandb"` goes online where a key and the network are there, and offline at once, with one line through
    `notify`, where not. `run_id` continues that run (`resume=True`); the attribute `run_id` names the run.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        project: str,
        entity: str | None,
        name: str | None,
        group: str | None,
        mode: str,
        run_id: str | None,
        resume: bool,
        notify: Callable[[str], None],
        tags: Sequence[str] = (),
        notes: str = "",
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own telemetry looks up a host
        self.run_id = run_id
        self._notify = notify
        self._table: tuple[int, Any] | None = None
        self._run = self._start(
            mode,
            dir=str(folder),
            config=without_secrets(config),
            project=project,
            entity=entity,
            name=name,
            group=group,
            tags=list(tags) or None,
            notes=notes or None,
            id=run_id,
            # Steps after the checkpoint that were already uploaded stay: W&B ignores their second, equal, log.
            resume="allow" if resume else None,
            reinit="finish_previous",
        )
        if self._run is not None:
            self.run_id = self._run.id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._guarded(lambda: self._log(step, metrics))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._guarded(lambda: self._hold(step, rows))

    def message(self, text: str) -> None:
        """Messages are for the console."""

    def alert(self, title: str, text: str) -> None:
        self._guarded(lambda: self._run.alert(title=title, text=text, level="WARN"))

    def finish(self, state: str) -> None:
        self._guarded(lambda: self._finish(1 if state == "failed" else 0))

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        # One call a step: W&B closes a step as soon as a later one is logged.
        held = {"samples": self._table[1]} if self._table else {}
        self._table = None
        self._run.log(metrics | held, step=step)

    def _hold(self, step: int, rows: list[dict[str, Any]]) -> None:
        import wandb

        data = [[step, row["prompt"], row["response"], row["score"], row["class"]] for row in rows]
        self._table = step, wandb.Table(columns=list(COLUMNS), data=data)

    def _finish(self, exit_code: int) -> None:
        import wandb

        if self._table:  # the run broke off between its samples and its metrics
            self._log(self._table[0], {})
        self._run.finish(exit_code=exit_code)
        self._run = None
        # finish() returns before W&B's service has written the file; its end is the end of writing.
        wandb.teardown(exit_code=exit_code)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do it, if there is a run; whatever W&B throws ends the mirror, never the training."""
        if self._run is None:
            return
        try:
            action()
        except Exception as error:
            self._run = None
            self._notify(f"W&B stopped ({reason(error)}); metrics.jsonl goes on")

    def _start(self, mode: str, **options: Any) -> Any:
        """The W&B run: online if it can be, else offline; None if W&B cannot even write its files."""
        import wandb

        options = {key: value for key, value in options.items() if value is not None}
        try:
            settings = wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off")
        except Exception as error:  # W&B reads its settings from WANDB_… variables, and refuses some
            self._notify(f"W&B is off ({reason(error)}); metrics.jsonl holds everything")
            return None
        obstacle = None
        if mode == "wandb" and (obstacle := why_offline()) is None:
            try:
                return wandb.init(mode="online", settings=settings, **options)
            except Exception as error:
                obstacle = reason(error)
                wandb.teardown()  # the half-started service would hold on to its failed run
        try:
            run = wandb.init(mode="offline", settings=settings, **options)
        except Exception as error:
            self._notify(f"W&B is off ({reason(error)}); metrics.jsonl holds everything")
            return None
        if obstacle:
            self._notify(f"W&B is offline: {obstacle}; upload later with `wandb sync` from {options['dir']}/wandb")
        return run


def why_offline() -> str | None:
    """What keeps W&B from going online, in words; None if nothing does."""
    from rlhf_cli.internals import wandb_private

    if (wish := os.environ.get("WANDB_MODE", "online")) not in ("online", "shared"):
        return f"WANDB_MODE={wish}"
    try:
        settings = wandb_private.settings()
        url = urlsplit(settings.base_url)
        assert url.hostname, "no host in it"
    except Exception as error:
        return f"its settings cannot be read ({reason(error)}); see WANDB_BASE_URL and the other WANDB_… variables"
    if not (settings.api_key or settings.identity_token_file or netrc_has(url.netloc)):
        return "no API key (wandb login, or WANDB_API_KEY)"
    if not reachable(settings.base_url):
        return f"{url.netloc} cannot be reached"
    return None


def netrc_has(host: str) -> bool:
    """Whether the user's netrc file, where `wandb login` leaves its key, knows the host."""
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            return netrc.netrc(file).authenticators(host) is not None
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError):
            return False
    return False


def reachable(url: str) -> bool:
    """Whether the server behind `url`, or the proxy on the way to it, takes a connection within two seconds."""
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def without_secrets(value: Any) -> Any:
    """`value` without the keys that name a credential, at any depth."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items() if not SECRET.search(str(key))}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def reason(error: Exception) -> str:
    """An error's kind and first line; of a WANDB_… variable that W&B refuses, its name, value and what is wrong."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        setting = "_".join(map(str, fault["loc"])).upper()
        names = [name for name in (f"WANDB_{setting}", f"WANDB_{setting.removeprefix('RUN_')}") if name in os.environ]
        if names:
            return printable(f"{names[0]}={os.environ[names[0]]}: {fault['msg'].splitlines()[0]}")
    lines = str(error).replace("<no message>", "").strip().splitlines()  # W&B's text for a refused key
    return printable(f"{type(error).__name__}: {lines[0]}" if lines else f"{type(error).__name__} without a message")
