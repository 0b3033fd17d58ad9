"""The versions that rlhf is tested with: bounds, constraints, and what a library is about to take away."""

import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import rlhf_cli
from rlhf_cli.runs.folder import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import versions

ROOT = versions.PYPROJECT.parent
NEEDED = [Requirement(need) for need in versions.requirements(versions.PYPROJECT, "test", "dev")]
TORCH = "2.14.1"
"""The newest one that `make test-newest TORCH=…` has passed with."""
PINNED = {
    name: version
    for name, _, version in (
        line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"
    )
}


def test_the_version_has_one_source() -> None:
    """--version, a run's environment.json (the report reads it) and the wheel say what rlhf_cli/__init__.py says."""
    project = tomllib.loads(versions.PYPROJECT.read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == Path(rlhf_cli.__file__)
    assert machine()["rlhf"] == rlhf_cli.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == rlhf_cli.__version__


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    for need in NEEDED:
        pinned = PINNED.get(versions.normal(need.name))
        assert pinned, f"{need.name} is not in constraints.txt: make constraints"
        assert need.specifier.contains(pinned), f"constraints.txt pins {need.name} {pinned}: make constraints"


def test_constraints_hold_for_every_build_of_torch() -> None:
    assert "+" not in "".join(PINNED.values())
    assert Requirement(f"torch=={PINNED['torch']}").specifier.contains(f"{PINNED['torch']}+cpu")
    assert not [name for name in PINNED if versions.BUILD_ONLY.fullmatch(name)]


@pytest.mark.parametrize("name", ["torch", "transformers", "hydra-core", "datasets", "wandb"])
def test_what_has_broken_people_ends_below_the_next_minor_release_of_what_was_tested(name: str) -> None:
    [need] = [need for need in NEEDED if need.name == name]
    [upper] = [Version(bound.version) for bound in need.specifier if bound.operator == "<"]
    tested = Version(TORCH if name == "torch" else PINNED[name])
    assert (upper.major, upper.minor) == (tested.major, tested.minor + 1)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    assert versions.lowest("Some_Name[extra]>=1.2,<2; python_version < '3'") == "some-name==1.2"
    with pytest.raises(ValueError, match="torch<3: no lower bound"):
        versions.lowest("torch<3")
    shown = subprocess.run([sys.executable, ROOT / "scripts/versions.py", "lowest"], capture_output=True, text=True)
    lowest = {need.name: need.specifier for need in map(Requirement, shown.stdout.splitlines())}
    for need in NEEDED[: len(versions.requirements())]:
        [exact] = lowest[versions.normal(need.name)]
        assert exact.operator == "=="
        assert need.specifier.contains(exact.version)


def test_a_local_version_is_pinned_as_its_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def __init__(self, name: str, version: str) -> None:
            self.name, self.version = name, version

    found = [Installed("torch", "2.13.0+cpu"), Installed("Some.Name", "1"), Installed("nvidia-nccl-cu13", "2")]
    monkeypatch.setattr(versions, "distributions", lambda: found)
    assert list(versions.frozen()) == ["some-name==1", "torch==2.13.0"]


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_what_a_library_will_take_away_is_an_error(kind: type[Warning]) -> None:
    with pytest.raises(kind):
        warnings.warn("this argument goes away", kind, stacklevel=2)
