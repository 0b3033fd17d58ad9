"""Whether the Hugging Face hub answers, asked with a bound on the time; and what of it is on this machine."""

import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

KEPT_SECONDS = 60.0
_answers: dict[str, tuple[float, str | None]] = {}


def obstacle(file: str = "", timeout: float = 4.0) -> str | None:
    """What keeps the hub, or the proxy on the way to it, from answering within `timeout` seconds; None if nothing.

    `file`: what it is asked for, such as "Qwen/Qwen2.5-0.5B/resolve/main/config.json". That it has no such file, or
    wants to know who asks, is an answer.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = f"{endpoint.rstrip('/')}/{file}"
    when, known = _answers.get(url, (float("-inf"), None))
    if time.monotonic() - when > KEPT_SECONDS:
        known = _ask(endpoint, url, timeout)
        _answers[url] = time.monotonic(), known
    return known


def _ask(endpoint: str, url: str, timeout: float) -> str | None:
    found: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                answer.read(2**16)
            found.append(None)
        except urllib.error.HTTPError as error:
            found.append(f"{endpoint} answers with an error ({error.code})" if error.code >= 500 else None)
        except Exception as error:
            found.append(f"{endpoint} does not answer ({getattr(error, 'reason', None) or error})")

    # in a thread, since looking up a name heeds no timeout, and a slow answer only one between two bytes
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return found[0] if found else f"{endpoint} does not answer within {timeout:g} s"


def on_this_machine(repo: str) -> bool:
    """Whether the model's config is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json"), str)


def dataset_on_this_machine(repo: str) -> bool:
    """Whether anything of the data set is in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots").is_dir()
