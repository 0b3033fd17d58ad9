"""What `rlhf doctor` says: a finding, of the installed packages and of a step that failed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from traceback import walk_tb
from typing import Any


@dataclass(frozen=True)
class Finding:
    what: str
    seen: str
    state: str = "ok"
    """ok | note (works, but you may want to know) | fix"""
    fix: str = ""


def packages() -> Iterator[Finding]:
    """Each dependency's version against what was tested: pyproject.toml's bounds."""
    from importlib.metadata import PackageNotFoundError, version

    needed, good = dependencies(), []
    if not needed:
        yield Finding("packages", "rlhf is not installed here", "note", "pip install .")
        return
    for need in needed:
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield Finding(need.name, "not installed", "fix", f'pip install "{need}"')
            continue
        if need.specifier.contains(found, prereleases=True):
            good.append(f"{need.name} {found}")
        else:
            seen = f"{found} is installed, which was not tested with rlhf; tested: {spoken(need.specifier)}"
            yield Finding(need.name, seen, "fix", f'pip install "{need}"')
    yield Finding("packages", f"within what was tested: {', '.join(good)}")


def dependencies() -> list[Any]:
    """Of the installed rlhf, without its extras' (packaging.requirements.Requirement); none if it is not installed."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("rlhf") or []]
    except PackageNotFoundError:
        return []
    return [need for need in wanted if not need.marker or need.marker.evaluate({"extra": ""})]


def spoken(specifier: Any) -> str:
    """`>=5.22,<5.25` as "5.22 and later, below 5.25"."""
    words = {">=": "{} and later", "<": "below {}"}
    bounds = sorted(specifier, key=lambda bound: bound.operator != ">=")
    return ", ".join(words.get(bound.operator, bound.operator + " {}").format(bound.version) for bound in bounds)


def failed_step(error: Exception, where: Any) -> Finding:
    """What failed, whose code raised it, and the versions of the two libraries that models stand on."""
    message = (str(error).strip().splitlines() or [""])[0]
    versions = ", ".join(installed(name) for name in ENGINE)
    seen = f"{type(error).__name__}: {message} [{raised_in(error)}] with {versions}"
    return Finding("a training step", seen, "fix", remedy(where))


ENGINE = ("torch", "transformers")


def raised_in(error: Exception) -> str:
    """The place of the deepest frame; where that is our own code or Python's, also the library whose code called it."""
    frames = [(frame.f_globals.get("__name__", "?"), line) for frame, line in walk_tb(error.__traceback__)]
    module, line = frames[-1]
    place = f"raised in {module}:{line}"
    if library(module):
        return f"{place}, {installed(library(module))}"
    callers = [(module, line) for module, line in frames if library(module) and module not in PLUMBING]
    if not callers:
        return place
    module, line = callers[-1]
    return f"{place}, called from {module}:{line}, {installed(library(module))}"


PLUMBING = ("torch.nn.modules.module", "torch.utils._contextlib")
"""They stand between any two calls of a model and say nothing about whose fault it is."""


def library(module: str) -> str:
    """The distribution that a module comes from; "" for our own and for Python's."""
    owners = distributions().get(module.partition(".")[0], [])
    return next((owner for owner in owners if owner != "rlhf"), "")


@cache
def distributions() -> Mapping[str, list[str]]:
    """Those that a top-level module comes from. Reads every file list, so once."""
    from importlib.metadata import packages_distributions

    return packages_distributions()


def installed(name: str) -> str:
    from importlib.metadata import version

    return f"{name} {version(name)}"


def remedy(where: Any) -> str:
    """What to type after a step failed: the tested versions if these are not, then what is not the plainest way."""
    from importlib.metadata import version

    needed = [need for need in dependencies() if need.name in ENGINE]
    untested = [need for need in needed if not need.specifier.contains(version(need.name), prereleases=True)]
    if untested:
        return "pip install " + " ".join(f'"{need}"' for need in untested)
    if where.device.type != "cpu":
        return "try device=cpu precision=fp32"
    if str(where.dtype) != "torch.float32":
        return "try precision=fp32"
    return "these versions were tested: report this line as a fault of rlhf"
