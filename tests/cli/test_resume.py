"""`resume`: what is finished is not repeated, what is not goes on, what differs is refused."""

import json
from pathlib import Path

import pytest
from test_command import command, run_directory, tiny


def metrics(directory: Path) -> dict[str, object]:
    return json.loads((directory / "metrics.json").read_text())


def test_a_sweep_repeats_what_failed_and_nothing_else(tmp_path: Path) -> None:
    first = tiny(tmp_path, "-m", "end=well,bug", "seed=0,1")
    sweep = run_directory(tmp_path)
    assert "4 jobs, 2 finished" in first.stdout
    assert "seed=1 end=bug" in first.stdout or "end=bug seed=1" in first.stdout
    assert 'KeyError: "a programmer\'s error"' in first.stdout
    before = {job: (sweep / str(job) / "metrics.json").stat().st_mtime_ns for job in range(4)}
    again = tiny(tmp_path, "-m", "end=well,bug", "seed=0,1", "resume=true")
    assert again.returncode == 1
    assert again.stderr.count("is finished already, nothing to do") == 2
    assert run_directory(tmp_path) == sweep
    after = {job: (sweep / str(job) / "metrics.json").stat().st_mtime_ns for job in range(4)}
    assert [after[job] == before[job] for job in range(4)] == [True, True, False, False]
    other = tiny(tmp_path, "-m", "end=well", "seed=0,1", "resume=true")
    assert "nothing unfinished with these settings" in other.stderr


@pytest.mark.parametrize(
    "arguments",
    [["-m", "end=well,bug", "hydra/job_logging=record"], ["+grid=ends", "seed=3"]],
    ids=["with an option of Hydra's", "a grid with an axis of one's own"],
)
def test_a_sweep_is_found_again_however_it_was_begun(tmp_path: Path, arguments: list[str]) -> None:
    assert "2 jobs, 1 finished" in tiny(tmp_path, *arguments).stdout
    sweep = run_directory(tmp_path)
    again = tiny(tmp_path, *arguments, "resume=true")
    assert again.stderr.count("is finished already, nothing to do") == 1
    assert run_directory(tmp_path) == sweep


def test_a_result_left_by_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    tiny(tmp_path, "seed=1", "hydra.run.dir=here")
    assert metrics(tmp_path / "here")["status"] == "finished"
    tiny(tmp_path, "seed=2", "end=killed", "hydra.run.dir=here")
    assert not (tmp_path / "here" / "metrics.json").exists()


def test_a_run_goes_on_in_its_own_directory_only_with_its_own_settings(tmp_path: Path) -> None:
    tiny(tmp_path, "end=bug", "seed=3")
    directory = run_directory(tmp_path)
    assert f"going on in {directory.relative_to(tmp_path)}" in tiny(tmp_path, "end=bug", "seed=3", "resume=true").stderr
    refused = tiny(tmp_path, "seed=3", f"resume={directory}")
    assert refused.returncode == 2
    assert "has other settings (end: bug -> well)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert metrics(directory)["status"] == "failed"
    assert "has no config.yaml" in tiny(tmp_path, "resume=outputs").stderr


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    tiny(tmp_path)
    directory = run_directory(tmp_path)
    content = (directory / "metrics.json").read_text()
    done = tiny(tmp_path, f"resume={directory}")
    assert (done.returncode, (directory / "metrics.json").read_text()) == (0, content)
    assert "is finished already, nothing to do" in done.stderr


def test_a_job_that_fails_before_its_record_says_why(tmp_path: Path) -> None:
    done = tiny(tmp_path, "-m", "needed=1,???")
    sweep = run_directory(tmp_path)
    assert done.returncode == 1
    assert metrics(sweep / "1")["error"] == "UserError: no value for needed; give one: needed=..."
    assert "Traceback" in (sweep / "1" / "run.log").read_text()
    assert "2 jobs, 1 finished" in done.stdout


def test_a_folder_from_somebody_else_is_not_built(tmp_path: Path) -> None:
    """Its settings are compared with those of the command line; what they name is not called."""
    tiny(tmp_path, "end=bug", "seed=3")
    directory = run_directory(tmp_path)
    kept = (directory / "config.yaml").read_text()
    for evil in (
        "a: {_target_: os.system, command: touch pwned}\n",
        "a: !!python/object/apply:os.system [touch pwned]\n",
    ):
        (directory / "config.yaml").write_text(kept + evil)
        refused = tiny(tmp_path, "end=bug", "seed=3", f"resume={directory}")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        tiny(tmp_path, "end=bug", "seed=3", "resume=true")
        command(tmp_path, "compare", str(directory))
    assert not list(tmp_path.rglob("pwned"))


def test_a_damaged_run_is_passed_over_by_name(tmp_path: Path) -> None:
    tiny(tmp_path, "end=bug", "seed=3")
    directory = run_directory(tmp_path)
    (directory / "config.yaml").write_text("[1]")
    again = tiny(tmp_path, "end=bug", "seed=3", "resume=true")
    assert f"resume: passed over {directory.relative_to(tmp_path)}" in again.stderr
    assert "nothing unfinished with these settings, so a new run" in again.stderr
    refused = tiny(tmp_path, "end=bug", "seed=3", f"resume={directory}")
    assert refused.returncode == 2
    assert "must be a mapping of settings, not a list; remove that file, or leave resume out" in refused.stderr
