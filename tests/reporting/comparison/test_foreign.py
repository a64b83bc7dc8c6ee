"""Runs received from others: whatever lies in a folder, it is compared or named with what is wrong, and nothing is run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_tables import PIXEL, _Page, make_run

from metagradient.cli.compare import compare as command
from metagradient.cli.jobs import tell_of_jobs
from metagradient.errors import UserError
from metagradient.reporting.comparison.tables import compare, t_test
from metagradient.reporting.runs import reading as runs

Harm = Callable[[Path], object]
BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)), "seed: *a39"]
)


def written(name: str, content: str | bytes) -> Harm:
    """A file of the run has this content instead."""

    def harm(run: Path) -> None:
        path = run / name
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return harm


def replaced(name: str, make: Harm) -> Harm:
    """Something else stands in a file's place."""

    def harm(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return harm


CONTENTS = {
    "config.yaml": {
        "a list": ("[1, 2]", "must be a mapping of settings, not a list"),
        "a word": ("hello", "must be a mapping of settings, not text"),
        "a number": ("7", "must be a mapping of settings, not a number"),
        "not UTF-8": (b"seed: \xff\xfe", "is not text in UTF-8"),
        "no YAML": ("a: [", "is no YAML of settings"),
        "control characters": ("a: \x1b[2J", "is no YAML of settings"),
        "referring to itself": ("seed: 1\na: &a {b: *a}", "refers to an anchor"),
        "a list in itself": ("seed: &a [*a]", "refers to an anchor"),
        "a bomb": (BOMB, "refers to an anchor"),
        "deep in brackets": ("a: " + "[" * 100_000, "is no YAML of settings"),
        "deep and whole": ("a: " + "[" * 500 + "]" * 500, "nested more than 50 deep"),
        "deep in lines": ("\n".join(" " * i + "a:" for i in range(800)), "nested more than 50 deep"),
        "a list of seeds": ("seed: [1, 2]", "seed must be one value, not several"),
        "a seed in parts": ("seed: {a: {}}\n", None),
        "an object": ("!!python/object/apply:os.system ['touch pwned']", "has the tag"),
        "an object as a seed": ("seed: !!python/name:os.system x", "has the tag"),
        "bytes": ("seed: !!binary aGVsbG8=", "has the tag"),
        "a date": ("seed: 2020-01-01", "holds a date"),
        "a long number": ("seed: " + "9" * 9000, "is no YAML of settings"),
        "a long hexadecimal number": ("seed: 0x" + "F" * 9000, "holds a number"),
        "a number to base 60": ("seed: 1" + ":1" * 400_000, "a word of 800001 characters"),
        "many settings": ("\n".join(f"a{i}: 1" for i in range(3000)), "holds 3000 settings"),
        "huge": ("a: '" + "x" * 2**21 + "'", "has more than 1 MiB"),
        "half a character": ('seed: "\\ud800"', "is no YAML of settings"),
        "empty": ("", None),
        "keys of all kinds": ("1: 2\nnull: 3\n2.5: {true: 4}\n", None),
    },
    "metrics.json": {
        "a list": ("[1]", "must hold results by name, not a list"),
        "null": ("null", "must hold results by name, not null"),
        "text": ('"x"', "must hold results by name, not text"),
        "NaN": ("NaN", "NaN is no JSON"),
        "deep": ("[" * 100_000, "is no JSON of results"),
        "deep and whole": ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "metrics.json"),
        "no JSON": ("{", "is no JSON of results"),
        "not UTF-8": (b'{"a": "\xff"}', "is no JSON of results"),
        "empty": ("", "is no JSON of results"),
        "a list of errors": ('{"status": "failed", "error": [1]}', "error must be a number or text, not a list"),
        "a result in parts": ('{"result/x": {"a": 1}}', "result/x must be a number or text, not a mapping"),
        "a result that is NaN": ('{"result/test_accuracy": NaN}', "NaN is no JSON"),
        "a result beyond numbers": ('{"result/test_accuracy": 1e999}', "is beyond 1e+150"),
        "a result of 400 digits": (f'{{"result/test_accuracy": {10**400}}}', "is beyond 1e+150"),
        "a result of 9000 digits": ('{"result/x": ' + "9" * 9000 + "}", "is no JSON of results"),
        "many results": (json.dumps({f"result/{i}": i for i in range(3000)}), "holds 3000 results"),
        "huge": (json.dumps({"a": "x" * 2**21}), "has more than 1 MiB"),
        "half a character": ('{"status": "failed", "error": "\\ud800"}', None),
    },
    ".hydra/hydra.yaml": {
        "a list": ("[1, 2]", "must be a mapping of settings, not a list"),
        "a list of hydras": ("hydra: [1]", "hydra must be a mapping of settings, not a list"),
        "choices in a list": ("hydra: {runtime: {choices: [a]}}", "runtime.choices must be a mapping"),
        "overrides in a word": ("hydra: {overrides: {task: seed=1}}", "must be a list, not text"),
        "overrides in a mapping": ("hydra: {overrides: [a]}", "hydra.overrides must be a mapping"),
        "a job in a list": ("hydra: {job: [a]}", "job must be a mapping"),
        "not UTF-8": (b"\xff", "is not text in UTF-8"),
        "referring to itself": ("hydra: &a {runtime: *a}", "refers to an anchor"),
        "choices of all kinds": ("hydra: {runtime: {choices: {1: null, a: [b]}}}", None),
    },
}
PLACES: dict[str, tuple[Harm, str]] = {
    "a directory": (Path.mkdir, "cannot be read (Is a directory)"),
    "a pipe": (os.mkfifo, "is a pipe or a device"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read (Too many levels of symbolic links)"),
}
HARMS = {
    f"{name} {how}": (written(name, content), says)
    for name, cases in CONTENTS.items()
    for how, (content, says) in cases.items()
} | {
    f"{name} {how}": (replaced(name, make), says) for name in CONTENTS for how, (make, says) in PLACES.items()
}  # fmt: skip


def plain_run(folder: Path, seed: int, **metrics: object) -> None:
    make_run(folder, {"seed": seed}, {"result/test_accuracy": 0.5 + 0.1 * seed, **metrics}, {"method": "weights"})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("harm", HARMS)
def test_a_malformed_run_is_named_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        plain_run(tmp_path / "received" / f"good{seed}", seed)
    plain_run(tmp_path / "received" / "bad", 2)
    do, says = HARMS[harm]
    do(tmp_path / "received" / "bad")
    whole = command(["received", "--html", "page.html", "--csv", "table.csv"])
    out, err = capsys.readouterr()
    assert "0.5500 ± 0.0707" in out or says is None  # the two others
    assert whole == (says is None)
    if says is None:
        assert err == ""
    else:
        (line,) = err.splitlines()
        assert line.startswith("metagradient compare: left out received/bad: received/bad/")
        assert says in line
        assert len(line) < 400
        assert "could not be read" in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "pwned").exists()
    tell_of_jobs(tmp_path / "received")  # the same folders as jobs of a sweep


def test_the_status_says_that_a_run_was_left_out(tmp_path: Path) -> None:
    plain_run(tmp_path / "good", 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("[]")
    code = f"from metagradient.cli.command import main; main(['compare', {str(tmp_path)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "0.5000" in done.stdout


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    plain_run(tmp_path / "deep" / "er" / "run", 0)
    for place in (tmp_path / "deep" / "back", tmp_path / "deep" / "er" / "again"):
        place.symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to("gone")
    (run,) = runs.find([tmp_path])
    assert run.directory == tmp_path / "deep" / "er" / "run"


def test_names_that_only_look_like_numbers_are_sorted(tmp_path: Path) -> None:
    for name in ("10", "9", "1²", "1²a2"):
        plain_run(tmp_path / name, 0)
    assert [run.directory.name for run in runs.find([tmp_path])] == ["1²", "1²a2", "9", "10"]


@pytest.mark.parametrize(
    ("name", "make"), [("x.png", os.mkfifo), ("x.png", Path.mkdir), ("x.png", lambda p: p.symlink_to("/dev/zero"))]
)
def test_no_other_file_gets_into_the_page(tmp_path: Path, name: str, make: Harm) -> None:
    """A link among the figures must not carry a reader's own file into a page that is passed on."""
    plain_run(tmp_path / "run", 0)
    secret = tmp_path / "secret"
    secret.write_text("a key of the reader's")
    (tmp_path / "run" / "figures" / "stolen.png").symlink_to(secret)
    make(tmp_path / "run" / "figures" / name)
    assert command([str(tmp_path / "run"), "--html", str(tmp_path / "page.html")])
    text, parsed = (tmp_path / "page.html").read_text(), _Page()
    parsed.feed(text)
    assert len(parsed.loads) == 1  # the run's own figure
    assert text.count("no picture") == 2
    assert PIXEL.startswith(b"\x89PNG")


@pytest.mark.parametrize("how", ["a pipe", "a directory", "a link to nothing", "a device"])
def test_a_log_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    make_run(tmp_path / "run", {"seed": 0}, None)
    PLACES[how][0](tmp_path / "run" / "run.log")
    assert command([str(tmp_path)])
    assert "run.log" in capsys.readouterr().out


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {"seed": 0}, None)
    with (tmp_path / "run" / "run.log").open("wb") as log:
        log.truncate(2**33)  # sparse
        log.seek(0, os.SEEK_END)
        log.write(b"\nKeyError: 'gone'\n")
    (run,) = runs.find([tmp_path])
    assert run.why == "KeyError: 'gone'"


def test_escape_sequences_in_a_run_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;taken\x07\x9b2J\u202e\ud800[/red]"
    safe = "\x1b]0;taken\x07"
    for i in (0, 1):
        make_run(
            tmp_path / "runs" / f"{safe}{i}",
            {"seed": safe, "a": f"{safe}[/red]{i}"},
            {"result/" + evil: 0.5, "experiment": evil},
            {"method": f"{safe}[/red]{i}"},
            (safe,),
        )
    make_run(tmp_path / "runs" / "failed", {}, {"status": "failed", "error": evil, "experiment": evil})
    make_run(tmp_path / "runs" / f"{safe}damaged", {}, {"status": [evil]})
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    assert not command([str(tmp_path / "runs"), "--html", str(page), "--csv", str(table)])
    tell_of_jobs(tmp_path / "runs")
    out, err = capsys.readouterr()
    assert not set("\x1b\x07\x9b\u202e\ud800") & set(out + err)
    assert r"\x1b]0;taken\x07" in out
    assert r"\x1b]0;taken\x07" in err
    assert r"\ud800" in page.read_text()
    assert r"\ud800" in table.read_text()


def test_formulas_in_names_do_not_reach_a_spreadsheet(tmp_path: Path) -> None:
    for i, word in enumerate(["=1+1", "@x"]):
        metrics = {"result/test_accuracy": 0.5, "experiment": "=cmd"}
        make_run(tmp_path / "runs" / str(i), {"seed": 0, "=key": word, "rate": -0.5 - i}, metrics)
    command([str(tmp_path / "runs"), "--csv", str(tmp_path / "table.csv")])
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("experiment,'=key,rate,metric")
    assert lines[1].startswith("'=cmd,'=1+1,-0.5,result/test_accuracy")
    assert lines[2].startswith("'=cmd,'@x,-1.5,result/test_accuracy")


@pytest.mark.parametrize("size", [1e-120, 1e-30, 1e30, 1e120])
def test_tests_do_not_depend_on_the_unit(size: float) -> None:
    a, b = {0: 1.0, 1: 1.5, 2: 1.1}, {5: 2.0, 6: 2.7}
    usual = t_test(a, b)
    scaled = t_test({k: v * size for k, v in a.items()}, {k: v * size for k, v in b.items()})
    assert scaled.p == pytest.approx(usual.p)


def test_extreme_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, value in enumerate([9e149, -9e149, 1e-300, 0.0, -0.0, 5e-324]):
        make_run(
            tmp_path / str(i),
            {"seed": i % 3, "a": i // 3},
            {"result/test_accuracy": value, "cost/training_runs": value},
        )
    assert command([str(tmp_path), "--html", str(tmp_path / "page.html")])
    compare(runs.find([tmp_path]))


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    plain_run(tmp_path / "run", 0)
    (tmp_path / "file").touch()
    for flag in ("--csv", "--html"):
        with pytest.raises(UserError, match="cannot write"):
            command([str(tmp_path / "run"), flag, str(tmp_path / "file" / "x")])
