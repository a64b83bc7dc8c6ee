"""What is built holds every package of ours: setup.py finds them, and nothing is listed by hand."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = """
import setuptools
found = {}
setuptools.setup = lambda **settings: found.update(settings)
exec(open("setup.py").read())
print("\\n".join(found["packages"]))
"""


def test_every_folder_of_ours_is_a_package() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    places = {ROOT / "src": "", ROOT / "conf": "metagradient.conf", ROOT / "experiments": "metagradient.experiments"}
    wanted = set()
    for root, name in places.items():
        for path in root.rglob("__init__.py"):
            parts = path.parent.relative_to(root).parts
            wanted.add(".".join(filter(None, (name, *parts))))
    assert found == wanted
    holding = {path.parent for path in (ROOT / "src").rglob("*.py") if "egg-info" not in str(path)}
    assert all((folder / "__init__.py").exists() for folder in holding), "a folder of modules without __init__.py"


def test_every_experiment_has_presets_that_hydra_finds() -> None:
    for root in (ROOT / "conf").glob("*.yaml"):
        assert (ROOT / "conf" / "presets" / root.stem / "__init__.py").exists(), root.stem
