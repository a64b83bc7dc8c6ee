"""The four floors: no import runs up, and none runs between neighbours that must not know each other."""

import ast
import importlib
import pkgutil
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINGS = ("descent", "attribution", "unlearning")
GROUND = {"errors", "escapes", "files", "intervals", "memory", "streams"}
"""Small modules that everybody may use; they know nobody."""
BELOW_WINGS = {*GROUND, "distributed", "training", "learners", "replay"}
MAY_IMPORT = {
    **{name: set() for name in GROUND},
    "schema": GROUND,
    "models": GROUND,
    "data": GROUND,
    "distributed": {"errors"},
    "training": {*GROUND, "distributed"},
    "learners": {*GROUND, "distributed", "training"},
    "replay": {*GROUND, "distributed", "training", "learners"},
    **dict.fromkeys(WINGS, BELOW_WINGS),
    "evaluation": {*GROUND, "distributed", "training", "learners"},
    "reporting": GROUND,
    "studies": {*BELOW_WINGS, *WINGS, "evaluation", "data", "models", "reporting", "schema"},
    # the command line hands its arguments on; what it needs at run time is imported there
    "cli": {*GROUND, "schema", "reporting", "studies", "experiments"},
    "__main__": {"cli"},
}
ABOVE_THE_FACE = {"studies"}
"""Who may `import metagradient as mg`, which is everything below the wings."""
LIGHT = {*sys.stdlib_module_names, "metagradient"}


def imports(path: Path, package: str, *, at_once: bool = False) -> tuple[str, ...]:
    """Dotted names that a file imports, lazily and for types included; `at_once`: those that importing it imports."""
    return _imports(path.read_text(encoding="utf-8"), package, at_once)


@cache
def _imports(text: str, package: str, at_once: bool) -> tuple[str, ...]:
    return tuple(_walk(text, package, at_once))


def _walk(text: str, package: str, at_once: bool) -> Iterator[str]:
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_once and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from metagradient import models` imports metagradient.models
            yield from (f"{base}.{alias.name}" for alias in node.names)
        nodes += ast.iter_child_nodes(node)


def floor(name: str) -> str | None:
    """The part of metagradient that a dotted name belongs to; None outside and for the package's own face."""
    parts = name.split(".")
    return parts[1] if parts[0] == "metagradient" and len(parts) > 1 else None


def sources(source: Path) -> Iterator[tuple[str, Path, str]]:
    """(floor, file, package) of every file of metagradient."""
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield parts[0], path, ".".join(("metagradient", *parts[:-1]))


def arrows_up(source: Path) -> list[str]:
    """What breaks the picture, one line each."""
    wrong = []
    for own, path, package in sources(source):
        if own == "__init__":
            continue
        if own not in MAY_IMPORT:
            wrong.append(f"{own} has no floor: give it one in {Path(__file__).name}")
            continue
        for name in imports(path, package):
            target = floor(name)
            if name.split(".")[:2] == ["metagradient", "__version__"] or target in (own, None):
                continue
            if target not in MAY_IMPORT[own]:
                wrong.append(f"{path.relative_to(source)} imports {name}")
        if own not in ABOVE_THE_FACE and _reads_the_face(path):
            wrong.append(f"{path.relative_to(source)} imports the public face, which is everything")
    return wrong


def _reads_the_face(path: Path) -> bool:
    return _has_the_face(path.read_text(encoding="utf-8"))


@cache
def _has_the_face(text: str) -> bool:
    return any(
        isinstance(node, ast.Import) and any(alias.name == "metagradient" for alias in node.names)
        for node in ast.walk(ast.parse(text))
    )


def circles(source: Path) -> list[str]:
    """Modules that import themselves through others; imports for types and within functions count, packages' faces do not."""
    names = {
        ".".join(("metagradient", *path.relative_to(source).with_suffix("").parts)): path
        for path in source.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }
    edges = {}
    for name, path in names.items():
        targets = set()
        for imported in imports(path, name.rpartition(".")[0]):
            targets |= {imported, imported.rpartition(".")[0]} & names.keys()
        edges[name] = targets - {name}
    found = []
    for name in names:
        reached, todo = set[str](), list(edges[name])
        while todo:
            if (following := todo.pop()) not in reached:
                reached.add(following)
                todo += edges[following]
        if name in reached:
            found.append(name)
    return sorted(found)


def crowded(source: Path, files: int = 13, lines: int = 300) -> list[str]:
    """Folders with more than about a dozen files, and files that are too long to read."""
    paths = sorted(source.rglob("*.py"))
    found = []
    for folder in sorted({path.parent for path in paths}):
        inside = [path for path in paths if path.parent == folder and path.stem != "__init__"]
        if len(inside) > files:
            found.append(f"{folder.relative_to(source)} has {len(inside)} files: give it rooms")
    for path in paths:
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > lines:
            found.append(f"{path.relative_to(source)} has {length} lines: give it neighbours")
    return found


def hidden_modules(package: str) -> list[str]:
    """Modules whose name their package hands on as something else, so that `import package.name as x` gives that."""
    found = []
    for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        parent, _, own = info.name.rpartition(".")
        if own == "__main__" or info.name.startswith(f"{package}.conf"):
            continue
        importlib.import_module(info.name)
        if not isinstance(getattr(importlib.import_module(parent), own), types.ModuleType):
            found.append(info.name)
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources, to be changed."""
    return shutil.copytree(ROOT / "src" / "metagradient", tmp_path / "metagradient")


def test_no_arrow_runs_up() -> None:
    assert arrows_up(ROOT / "src" / "metagradient") == []


def test_no_module_imports_itself_through_others() -> None:
    assert circles(ROOT / "src" / "metagradient") == []


def test_a_circle_is_seen(copy: Path) -> None:
    with (copy / "training" / "random.py").open("a", encoding="utf-8") as source:
        source.write("\nif TYPE_CHECKING:\n    from metagradient.training.batches import Batch\n")
    assert {"metagradient.training.random", "metagradient.training.batches"} <= set(circles(copy))


def test_folders_and_files_stay_small() -> None:
    assert crowded(ROOT / "src" / "metagradient") == []
    assert len(list((ROOT / "experiments").glob("_[!_]*.py"))) <= 3


def test_no_module_is_hidden_by_a_name() -> None:
    assert hidden_modules("metagradient") == []


def test_training_needs_no_lightning() -> None:
    command = "import metagradient.training, sys; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("training/steps.py", "from metagradient.replay.plans import Plan"),
        ("training/steps.py", "from ..replay import plans"),
        ("training/steps.py", "from .. import replay"),
        ("training/steps.py", "from metagradient import replay"),
        ("training/steps.py", "def lazily():\n    import metagradient.descent.updates"),
        ("training/steps.py", "if TYPE_CHECKING:\n    from metagradient.replay import Plan"),
        ("training/steps.py", "import metagradient"),
        ("training/steps.py", "from metagradient.models import GPT"),
        ("replay/adjoint.py", "from metagradient.evaluation import accuracy"),
        ("replay/adjoint.py", "from metagradient.reporting import Record"),
        ("evaluation/retraining.py", "from metagradient.replay import metagradient"),
        ("descent/updates.py", "from metagradient.evaluation import accuracy"),
        ("reporting/table.py", "from metagradient.training import TrainState"),
        ("models/gpt.py", "from metagradient.training import Learner"),
        ("data/sources.py", "from metagradient.models import GPT"),
        ("errors.py", "from metagradient.training import TrainState"),
        ("cli/errors.py", "from metagradient.replay import ReplayMismatch"),
        ("newcomer/file.py", "import torch"),
        *((f"{a}/file.py", f"from metagradient.{b}.file import x") for a in WINGS for b in WINGS if a != b),
    ],
)
def test_an_arrow_that_runs_up_is_seen(copy: Path, file: str, line: str) -> None:
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    wrong = arrows_up(copy)
    assert len(wrong) >= 1
    assert file.split("/")[0].removesuffix(".py") in wrong[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("replay/adjoint.py", "from metagradient.training import TrainState"),
        ("training/steps.py", "from metagradient.errors import UserError"),
        ("training/steps.py", "from .state import TrainState"),
        ("attribution/scores.py", "from metagradient.replay import metagradient"),
        ("models/gpt.py", "import torch"),
    ],
)
def test_an_arrow_that_runs_down_is_none(copy: Path, file: str, line: str) -> None:
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    assert arrows_up(copy) == []


def heavy(source: Path) -> list[str]:
    """What importing the command line imports beside the standard library and other light modules of ours."""
    found = []
    for path in (source / "__init__.py", source / "errors.py", *sorted((source / "cli").glob("*.py"))):
        package = ".".join(("metagradient", *path.relative_to(source).parts[:-1]))
        for imported in imports(path, package, at_once=True):
            if imported.split(".")[0] not in LIGHT or floor(imported) not in ("cli", "errors", "escapes", None):
                found.append(f"{path.relative_to(source)} imports {imported}")
    return found


def test_the_command_line_imports_nothing_heavy() -> None:
    assert heavy(ROOT / "src" / "metagradient") == []


@pytest.mark.parametrize("line", ["import torch", "from metagradient.reporting import Record", "import hydra"])
def test_a_heavy_command_line_is_seen(copy: Path, line: str) -> None:
    with (copy / "cli" / "command.py").open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    assert heavy(copy)


def test_data_sets_are_named_without_what_a_few_of_them_read_with() -> None:
    """pandas, datasets and scikit-learn are seconds of import that a run on something else need not pay."""
    code = "import metagradient.data, sys; print(*{'pandas', 'datasets', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_file_names_shadow_nothing_of_the_standard_library() -> None:
    """`python experiments/<name>.py` puts its folder first on the path."""
    taken = [path.name for path in (ROOT / "experiments").glob("*.py") if path.stem in sys.stdlib_module_names]
    assert taken == []
