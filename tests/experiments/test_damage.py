"""Every file of a run's directory, damaged in every way: what resumes then computes it again, or refuses it by name.

No other number is ever left behind.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import run_in
from killing import Kill, Whole, directory_of, killed, left_by, whole
from runs import BRIEF, some

from metagradient.files import digest

HARMS = ("flip early", "flip late", "truncate", "empty", "swap", "directory", "link")


def harmed(file: Path, harm: str, another: Path) -> bool:
    """Do it; False where it cannot be done to this file."""
    data = bytearray(file.read_bytes())
    if harm == "swap" and (not another.is_file() or another.read_bytes() == data):
        return False
    if harm in ("truncate", "flip early", "flip late", "empty") and not data:
        return False
    file.unlink()
    if harm == "directory":
        file.mkdir()
    elif harm == "link":
        file.symlink_to("nowhere")
    elif harm == "swap":
        shutil.copyfile(another, file)
    else:
        at = len(data) // 4 if harm == "flip early" else len(data) - 1 - len(data) // 4
        data[at] ^= 1
        file.write_bytes({"truncate": data[: len(data) // 2], "empty": b""}.get(harm, data))
    return True


def outcomes(
    place: Path, other: Path, experiment: str, arguments: list[str], expected: dict[str, object]
) -> Iterator[tuple[str, str, str]]:
    """(file, harm, what came of it) for every file of the one run at `place`, which is brought back each time."""
    pristine = place.with_name(f"{place.name} pristine")
    shutil.copytree(place, pristine)
    run, another = directory_of(pristine, experiment), directory_of(other, experiment)
    files = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    kept = [path.relative_to(pristine) for path in sorted((pristine / "cache").rglob("*")) if path.is_file()]
    swapped = {path: next((other / "cache").rglob("*.safetensors"), other) for path in kept}
    swapped |= {run.relative_to(pristine) / name: another / name for name in files}
    for path, harm in some([(path, harm) for path in swapped for harm in HARMS]):
        shutil.rmtree(place)
        shutil.copytree(pristine, place)
        if not harmed(place / path, harm, swapped[path]):
            continue
        done = run_in(place, experiment, *arguments)
        last = done.err.strip().rpartition("\n")[2]
        newest = max((place / "outputs" / experiment).iterdir(), key=lambda folder: folder.name)
        if done.status == 0:
            left, anew = left_by(newest), newest.name != run.name
            differ = [key for key in left.keys() | expected.keys() if left.get(key) != expected.get(key)]
            if anew and differ == ["cost/training_runs"]:  # a new run owes nothing for retrainings that another kept
                differ = []
            outcome = f"DIFFERENT: {differ}" if differ else "the same, anew" if anew else "the same"
        elif done.status == 2 and path.name in last and "Traceback" not in done.err:
            outcome = "refused by name"
        else:
            outcome = f"status {done.status}: {last}"
        yield str(path), harm, outcome


def judged(told: Iterator[tuple[str, str, str]], title: str) -> None:
    rows = list(told)
    counts = Counter(outcome for _, _, outcome in rows)
    print(f"\n{title}: {len({row[0] for row in rows})} files, {len(rows)} damages: {dict(counts)}")
    allowed = ("the same", "the same, anew", "refused by name")
    assert [row for row in rows if row[2] not in allowed] == []


def late(folder: Path, name: str, experiment: str, overrides: list[str]) -> Whole:
    """Leave a run at `folder / name` that was killed at its end; how it would have ended."""
    uninterrupted = whole(folder / f"whole {name}", experiment, overrides)
    when = Kill(save=uninterrupted.saves - 1, behind=True) if uninterrupted.saves else Kill(cpu=0.9 * uninterrupted.cpu)
    killed(folder / name, experiment, overrides, when)
    return uninterrupted


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind for kind in BRIEF if kind != "cost"])
def test_a_damaged_file_of_an_interrupted_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, overrides = BRIEF[kind]
    uninterrupted = late(tmp_path, "run", experiment, overrides)
    late(tmp_path, "other", experiment, [*overrides, "seed=1"])
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "run" / "cache"))
    arguments = [*overrides, "resume=true"]
    told = outcomes(tmp_path / "run", tmp_path / "other", experiment, arguments, uninterrupted.left)
    judged(told, f"{kind}, interrupted")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind for kind in BRIEF if kind != "cost"])
def test_a_damaged_file_of_a_finished_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, overrides = BRIEF[kind]
    uninterrupted = whole(tmp_path / "run", experiment, overrides)
    whole(tmp_path / "other", experiment, [*overrides, "seed=1"])
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "run" / "cache"))
    directory = directory_of(tmp_path / "run", experiment).relative_to(tmp_path / "run")
    arguments = [*overrides, f"resume={directory}"]
    told = outcomes(tmp_path / "run", tmp_path / "other", experiment, arguments, uninterrupted.left)
    judged(told, f"{kind}, finished")


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("artifacts/selection.csv", "figures/weights.png")),
    ],
)
def test_a_finished_run_whose_file_was_changed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    command = ["debug=fast", "logger.mode=disabled"]
    assert run_in(tmp_path, "selection", *command, "hydra.run.dir=here").status == 0
    noted = (tmp_path / "here" / "SHA256SUMS").read_text().splitlines()
    assert f"{digest((tmp_path / 'here' / name).read_bytes())}  {name}" in noted
    (tmp_path / "here" / name).write_text("{}")
    again = run_in(tmp_path, "selection", *command, "resume=here")
    assert again.status == 2
    assert f"{name} is not what the run left" in again.err
    assert again.err.count("\n") == 1
    (tmp_path / "here" / name).unlink()  # what was removed since is nobody's harm
    assert run_in(tmp_path, "selection", *command, "resume=here").status == 0
