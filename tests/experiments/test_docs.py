"""What README and the documentation show works as it stands: their Python runs, their commands compose."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from console import run_in

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8") and page.name != "README.md"]
EXPERIMENTS = ("selection", "poisoning", "schedule", "attribution", "smoothness", "cost", "unlearning")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[tuple[str, str]]:
    """(page, command) of each `metagradient <experiment> ...`, in blocks and in running text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(metagradient [^`]+)`", text.replace("\n", " "))
        for line in lines:
            command = re.sub(r"\s+#.*", "", line).partition(" && ")[2 if " && " in line else 0]
            words = command.split()
            if words[:1] == ["metagradient"] and len(words) > 1 and words[1] in EXPERIMENTS:
                found.append((named(page), " ".join(words)))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks one after the other, in one namespace; assertions in them are what the page claims."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    space: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, named(page), "exec"), space)


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value[:60])
def test_a_command_of_a_page_composes(page: str, command: str, tmp_path: Path) -> None:
    """Every setting, preset and option that it names exists (of a sweep: its first job)."""
    words = [word for word in shlex.split(command)[1:] if word not in ("-m", "--help", "...") and "..." not in word]
    first = [word if "[" in word or "{" in word else re.sub(r"^([^=]+=[^,]*),.*", r"\1", word) for word in words[1:]]
    kept = [word for word in first if not word.startswith(("resume=", "+grid=", "hydra"))]
    done = run_in(tmp_path, words[0], *kept, "--cfg", "job")
    assert done.status == 0, f"{page}: {done.err}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{named(page)}: {target}"


def test_the_reference_names_what_exists() -> None:
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, own = name.rpartition(".")
            assert hasattr(importlib.import_module(module), own), f"{named(page)}: {name}"


@pytest.mark.parametrize(
    "package", ["training", "learners", "replay", "attribution", "descent", "unlearning", "evaluation"]
)
def test_the_reference_is_complete(package: str) -> None:
    """Every class and function that a package hands on stands on its page."""
    text = (ROOT / "docs" / "reference" / f"{package}.md").read_text(encoding="utf-8")
    module = importlib.import_module(f"metagradient.{package}")
    handed_on = {name for name in module.__all__ if callable(getattr(module, name)) and name[0] != "_"}
    told = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    types_only = {"Schedule", "Optimizer", "NonFiniteLoss", "Objective"}
    assert handed_on - types_only <= told, sorted(handed_on - types_only - told)
