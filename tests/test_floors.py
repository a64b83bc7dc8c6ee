"""The four floors: no import runs up, and none runs between neighbours that must not know each other."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINGS = ("descent", "attribution", "unlearning")
GROUND = {"errors"}
MAY_IMPORT = {
    "errors": set(),
    "models": GROUND,
    "data": GROUND,
    "training": GROUND,
    "replay": {*GROUND, "training"},
    **{wing: {*GROUND, "training", "replay"} for wing in WINGS},
    "evaluation": {*GROUND, "training"},
    "reporting": GROUND,
    "schema": set(),
    "cli_help": set(),
    "cli_errors": {*GROUND, "cli_help"},
    "cli_values": {*GROUND, "cli_help"},
    # the command line hands its arguments on; the two it needs at run time are imported there
    "cli_compare": {*GROUND, "reporting"},
    "cli_completion": set(),
    "cli_jobs": {*GROUND, "cli_help", "reporting"},
    "cli": {
        *GROUND,
        "cli_compare",
        "cli_completion",
        "cli_jobs",
        "cli_errors",
        "cli_help",
        "cli_values",
        "schema",
        "reporting",
        "experiments",
    },
}
LIGHT = {*sys.stdlib_module_names, "metagradient"}


def imports(path: Path, package: str, *, at_once: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, lazily and for types included; `at_once`: those that importing it imports."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
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
        if "import metagradient" in path.read_text(encoding="utf-8").split("\n"):
            wrong.append(f"{path.relative_to(source)} imports the public face, which is everything")
    return wrong


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources, to be changed."""
    return shutil.copytree(ROOT / "src" / "metagradient", tmp_path / "metagradient")


def test_no_arrow_runs_up() -> None:
    assert arrows_up(ROOT / "src" / "metagradient") == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("training/step.py", "from metagradient.replay.plans import Plan"),
        ("training/step.py", "from ..replay import plans"),
        ("training/step.py", "from .. import replay"),
        ("training/step.py", "from metagradient import replay"),
        ("training/step.py", "def lazily():\n    import metagradient.descent.updates"),
        ("training/step.py", "if TYPE_CHECKING:\n    from metagradient.replay import Plan"),
        ("training/step.py", "import metagradient"),
        ("training/step.py", "from metagradient.models import GPT"),
        ("replay/adjoint.py", "from metagradient.evaluation import accuracy"),
        ("replay/adjoint.py", "from metagradient.reporting import Record"),
        ("evaluation/retraining.py", "from metagradient.replay import metagradient"),
        ("descent/updates.py", "from metagradient.evaluation import accuracy"),
        ("reporting/table.py", "from metagradient.training import TrainState"),
        ("models/gpt.py", "from metagradient.training import Learner"),
        ("data/sources.py", "from metagradient.models import GPT"),
        ("errors.py", "from metagradient.training import TrainState"),
        ("cli_errors.py", "from metagradient.replay import ReplayMismatch"),
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
        ("training/step.py", "from metagradient.errors import UserError"),
        ("training/step.py", "from .state import TrainState"),
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


def heavy(source: Path, names: tuple[str, ...]) -> list[str]:
    """What importing these modules imports beside the standard library, and what of ours that is not one of them."""
    found = []
    for name in names:
        for imported in imports(source / f"{name}.py", "metagradient", at_once=True):
            root, target = imported.split(".")[0], floor(imported)
            if root not in LIGHT or (target is not None and target not in (*names, "errors")):
                found.append(f"{name} imports {imported}")
    return found


def command_line(source: Path) -> tuple[str, ...]:
    return tuple(path.stem for path in sorted(source.glob("cli*.py")))


def test_the_command_line_imports_nothing_heavy() -> None:
    source = ROOT / "src" / "metagradient"
    assert heavy(source, ("__init__", "errors", *command_line(source))) == []


@pytest.mark.parametrize("line", ["import torch", "from metagradient.reporting import Record", "import hydra"])
def test_a_heavy_command_line_is_seen(copy: Path, line: str) -> None:
    with (copy / "cli.py").open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    assert heavy(copy, ("__init__", "errors", *command_line(copy)))


def test_file_names_shadow_nothing_of_the_standard_library() -> None:
    """`python experiments/<name>.py` puts its folder first on the path."""
    taken = [path.name for path in (ROOT / "experiments").glob("*.py") if path.stem in sys.stdlib_module_names]
    assert taken == []
