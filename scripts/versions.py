"""Which versions of the libraries rlhf is tested with.

    python scripts/versions.py lowest       # the lowest that pyproject.toml admits, as requirements
    python scripts/versions.py installed    # what this environment has of them
    python scripts/versions.py freeze       # all that this environment has, as constraints

Standard library only: it runs before anything is installed.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, version
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
BUILD_ONLY = re.compile(r"nvidia-.*|cuda-.*|triton|rlhf|pip|wheel")
"""What only some builds of torch bring, which pin it themselves; and what an environment has without us."""


def requirements(pyproject: Path = PYPROJECT, *extras: str) -> list[str]:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + [need for extra in extras for need in project["optional-dependencies"][extra]]


def name_of(requirement: str) -> str:
    """The distribution's name as indexes spell it (PEP 503)."""
    return normal(re.match(r"[\w.-]+", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lowest(requirement: str) -> str:
    """`name>=1.2,<2` as `name==1.2`. Raises ValueError where there is no lower bound."""
    bound = re.search(r">=\s*([\w.]+)", requirement)
    if bound is None:
        raise ValueError(f"{requirement}: no lower bound (write {name_of(requirement)}>=…)")
    return f"{name_of(requirement)}=={bound[1]}"


def frozen() -> Iterator[str]:
    """A local version (2.13.0+cpu) is pinned as its public one, which admits every build of it."""
    found = {normal(each.name): each.version.split("+")[0] for each in distributions()}
    yield from (f"{name}=={found[name]}" for name in sorted(found) if not BUILD_ONLY.fullmatch(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lowest", "installed", "freeze"])
    match parser.parse_args().what:
        case "lowest":
            lines = [lowest(need) for need in requirements(PYPROJECT, "test")]
        case "installed":
            names = [name_of(need) for need in requirements()]
            lines = ["ran on: " + ", ".join(f"{name} {version(name)}" for name in names)]
        case "freeze":
            lines = ["# Every version that the tests passed with. Made by: make constraints", *frozen()]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
