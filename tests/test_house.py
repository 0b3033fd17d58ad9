"""The rules of docs/architecture.md: floors, circles, lengths, names. Each checker fails on a planted fault."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_cli"

FLOORS = (
    "internals", "streams", "tracking", "config", "rl", "data", "engine", "rewards", "preferences", "evaluation",
    "training", "miniatures", "build", "runs", "report", "sweeps", "commands", "cli", "__main__",
)  # fmt: skip
"""Rooms, lowest first, and the files beside them. A room imports what is before it in this list."""

BY_NAME = {"sweeps/sweep.py": "a job runs the command that its sweep names"}
"""Files that import a floor above their own by `import_module`, and why."""

FILE_LINES, FUNCTION_LINES = 400, 60
LONG_FILES = {"data/generated_words.py": "a word list: data, not code"}


@cache
def modules(package: Path) -> list[tuple[str, ast.Module]]:
    """(path within the package, syntax tree) of every file."""
    files = sorted(package.rglob("*.py"))
    return [(file.relative_to(package).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def room(path: str) -> str:
    """The folder of a file; of one beside the folders, its own name."""
    return path.partition("/")[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="rlhf_cli", names=names):
                yield from (f"rlhf_cli.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name
            case ast.ImportFrom(level=level) if level:
                yield "rlhf_cli.(a relative import hides its room)"


def imports_by_name(tree: ast.Module) -> Iterator[str]:
    """The rlhf_cli modules that `import_module` gets as a string, an f-string's start included."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
                for part in ast.walk(first):
                    if isinstance(part, ast.Constant) and str(part.value).startswith("rlhf_cli."):
                        yield str(part.value)


def rooms_imported(names: Iterator[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "rlhf_cli" and len(name) > 1} - {"__version__"}


def upward_imports(package: Path) -> list[str]:
    """Files that import a room above their own, or one that no floor is known of."""
    found = []
    for path, tree in modules(package):
        wanted = rooms_imported(imports(tree))
        if path not in BY_NAME:
            wanted |= rooms_imported(imports_by_name(tree))
        mine = room(path)
        if mine == "__init__":
            found += [f"{path} imports {other}" for other in sorted(wanted)]
            continue
        found += [f"{name} has no floor" for name in sorted({mine, *wanted} - {*FLOORS})]
        known = [other for other in sorted(wanted) if other in FLOORS and mine in FLOORS]
        found += [f"{path} imports {other}" for other in known if FLOORS.index(other) > FLOORS.index(mine)]
    return found


def circles(package: Path) -> list[str]:
    """Pairs of rooms that reach each other."""
    reached: dict[str, set[str]] = defaultdict(set)
    for path, tree in modules(package):
        reached[room(path)] |= rooms_imported(imports(tree))
    for through in list(reached):
        for name in list(reached):
            if through in reached[name]:
                reached[name] |= reached[through]
    return [f"{a} and {b}" for a in sorted(reached) for b in sorted(reached[a]) if a < b and a in reached[b]]


def impure_rl(package: Path) -> list[str]:
    """What rl/ imports beside itself, torch, jaxtyping and Python's own: it is tensors only."""
    allowed = {"torch", "jaxtyping", *sys.stdlib_module_names} - {"pathlib", "os", "io", "logging", "json"}
    found = []
    for path, tree in modules(package):
        if room(path) == "rl":
            wanted = [name for name in imports(tree) if not f"{name}.".startswith("rlhf_cli.rl.")]
            found += [f"{path} imports {name}" for name in wanted if name.partition(".")[0] not in allowed]
    return found


def long_files(package: Path) -> list[str]:
    lines = {path: len((package / path).read_text(encoding="utf-8").splitlines()) for path, _ in modules(package)}
    return [f"{path}: {n} lines" for path, n in lines.items() if n > FILE_LINES and path not in LONG_FILES]


def long_functions(package: Path) -> list[str]:
    found = []
    for path, tree in modules(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines, name = node.end_lineno - node.lineno + 1, f"{path}:{node.name}"
                if lines > FUNCTION_LINES:
                    found.append(f"{name}: {lines} lines")
    return found


def names_used_twice(package: Path) -> list[str]:
    """File names that stand in two rooms. A command's file is named as the command, whatever else has that name."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, _ in modules(package):
        name = path.rpartition("/")[2]
        if name != "__init__.py" and room(path) != "commands":
            places[name].append(path)
    return [" and ".join(paths) for paths in places.values() if len(paths) > 1]


def swallowed_arguments(package: Path) -> list[str]:
    """Functions that let keyword arguments vanish: `**_`, `**_ignored`."""
    return [
        f"{path}:{node.lineno} takes **{node.args.kwarg.arg}"
        for path, tree in modules(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and node.args.kwarg
        and node.args.kwarg.arg.startswith("_")
    ]


CHECKS = (
    upward_imports, circles, impure_rl, long_files, long_functions, names_used_twice, swallowed_arguments,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_keeps_its_rule(check: Callable[[Path], list[str]]) -> None:
    assert check(PACKAGE) == []


PLANTED = [
    (upward_imports, {"rl/a.py": "from rlhf_cli.training.loop import train_step"}, "rl/a.py imports training"),
    (upward_imports, {"rl/a.py": "def f():\n    from rlhf_cli import runs"}, "rl/a.py imports runs"),
    (upward_imports, {"runs/a.py": "import rlhf_cli.cli"}, "runs/a.py imports cli"),
    (upward_imports, {"runs/a.py": "import_module(f'rlhf_cli.commands.{x}')"}, "runs/a.py imports commands"),
    (upward_imports, {"__init__.py": "from rlhf_cli.config import errors"}, "__init__.py imports config"),
    (upward_imports, {"attic/a.py": ""}, "attic has no floor"),
    (upward_imports, {"rl/a.py": "from ..runs import b"}, "(a relative import hides its room) has no floor"),
    (
        circles,
        {"rl/a.py": "import rlhf_cli.data.b", "data/b.py": "import rlhf_cli.runs.c", "runs/c.py": "import rlhf_cli.rl"},
        "data and rl",
    ),
    (impure_rl, {"rl/a.py": "from rlhf_cli.config.errors import UserError"}, "rl/a.py imports rlhf_cli.config.errors"),
    (impure_rl, {"rl/a.py": "import transformers"}, "rl/a.py imports transformers"),
    (impure_rl, {"rl/a.py": "from pathlib import Path"}, "rl/a.py imports pathlib"),
    (long_files, {"rl/a.py": "x = 1\n" * (FILE_LINES + 1)}, f"rl/a.py: {FILE_LINES + 1} lines"),
    (
        long_functions,
        {"rl/a.py": "class A:\n  def f(self):\n" + "    x = 1\n" * FUNCTION_LINES},
        f"rl/a.py:f: {FUNCTION_LINES + 1} lines",
    ),
    (names_used_twice, {"rl/a.py": "", "data/a.py": ""}, "data/a.py and rl/a.py"),
    (swallowed_arguments, {"rl/a.py": "def f(x, **_):\n    pass"}, "rl/a.py:1 takes **_"),
    (swallowed_arguments, {"rl/a.py": "f = lambda **_rest: 0"}, "rl/a.py:1 takes **_rest"),
]


@pytest.mark.parametrize(("check", "files", "fault"), PLANTED)
def test_a_planted_fault_is_found(
    tmp_path: Path, check: Callable[[Path], list[str]], files: dict[str, str], fault: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(fault in line for line in check(tmp_path)), check(tmp_path)


@pytest.mark.parametrize(
    ("check", "files"),
    [
        (upward_imports, {"runs/a.py": "from rlhf_cli.rl.masked import whiten\nfrom rlhf_cli import __version__"}),
        (circles, {"runs/a.py": "import rlhf_cli.rl.b", "rl/b.py": "import rlhf_cli.rl.c"}),
        (impure_rl, {"rl/a.py": "import math\nimport torch.nn\nfrom rlhf_cli.rl.masked import whiten"}),
        (long_files, {"rl/a.py": "x = 1\n" * FILE_LINES}),
        (long_functions, {"rl/a.py": "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)}),
        (names_used_twice, {"engine/sample.py": "", "commands/sample.py": ""}),
        (swallowed_arguments, {"rl/a.py": "def f(*_, **given):\n    pass"}),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path: Path, check: Callable[[Path], list[str]], files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check(tmp_path) == []


def places(page: str) -> set[tuple[str, str]]:
    """The (file, name or "") that a page of docs/ speaks of, as in `rl/losses.py:policy_loss`."""
    return set(re.findall(r"`(?:rlhf_cli/)?([\w/]+\.(?:py|yaml))(?::(\w+))?`", page))


def missing_places(root: Path, page: str) -> list[str]:
    """Those that are not there; a file without a folder, as in the map, is anywhere in the package."""
    found = []
    for file, name in sorted(places(page)):
        options = [root / file, root / "rlhf_cli" / file]
        options += [] if "/" in file else list((root / "rlhf_cli").rglob(file))
        known = [path for path in options if path.is_file()]
        text = "".join(path.read_text(encoding="utf-8") for path in known)
        if not known or (name and not re.search(rf"^\s*(?:def|class) {name}\b", text, re.MULTILINE)):
            found.append(f"{file}:{name}".rstrip(":"))
    return found


NOT_YET = {"algo/clipped_rloo.yaml", "my_loss.py", "my_reward.py"}
"""What the recipes of extending.md make."""


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_what_the_docs_speak_of_is_there(page: str) -> None:
    root = PACKAGE.parent
    text = (root / "docs" / page).read_text(encoding="utf-8")
    assert len(places(text)) > 10
    assert set(missing_places(root, text)) <= NOT_YET


def test_a_place_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "rlhf_cli" / "rl").mkdir(parents=True)
    (tmp_path / "rlhf_cli" / "rl" / "a.py").write_text("def there():\n    pass\n")
    page = "`rl/a.py:there` `a.py` `rlhf_cli/rl/a.py` `rl/a.py:gone` `rl/b.py` `conf/a.yaml`"
    assert missing_places(tmp_path, page) == ["conf/a.yaml", "rl/a.py:gone", "rl/b.py"]


def dead_links(page: Path) -> list[str]:
    """A page's links and pictures that lead to no file; addresses of the web are not asked."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    root = PACKAGE.parent
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    assert {page.name: dead_links(page) for page in pages if dead_links(page)} == {}
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#part) ![b](gone.png) [c](https://example.org/x)")
    assert dead_links(page) == ["gone.png"]


def test_the_map_shows_every_room_from_the_highest_floor_down() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert shown == [room for room in reversed(FLOORS) if (PACKAGE / room).is_dir()]


def test_every_exception_is_still_needed() -> None:
    """An exception that nothing needs any more goes."""
    lengths = {path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path, _ in modules(PACKAGE)}
    assert set(LONG_FILES) <= {path for path, lines in lengths.items() if lines > FILE_LINES}
    climbing = [path for path, tree in modules(PACKAGE) if "commands" in rooms_imported(imports_by_name(tree))]
    assert set(BY_NAME) <= {*climbing}
    assert {*FLOORS} <= {room(path) for path, _ in modules(PACKAGE)}
