"""Comparing runs: what is shown, the statistics against scipy's, and the page."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from metagradient.cli.compare import compare as command
from metagradient.errors import UserError
from metagradient.reporting.comparison.tables import by_seed, compare, holm, t_test
from metagradient.reporting.runs import reading as runs

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ACCURACY = {"weights": [0.94, 0.95, 0.93], "counts": [0.91, 0.93, 0.90]}


def make_run(
    folder: Path, config: dict[str, Any], metrics: dict[str, Any] | None, choices: dict[str, str] | None = None,
    overrides: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """A run directory as Record and Hydra leave it."""
    (folder / "figures").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps({"experiment": "selection", "status": "finished", **metrics}))
    (folder / ".hydra").mkdir()
    hydra = {
        "runtime": {"choices": choices or {}},
        "overrides": {"task": list(overrides)},
        "job": {"config_name": "selection"},
    }
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    (folder / "figures" / "weights.png").write_bytes(PIXEL)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two methods x three seeds, one failed job, one killed job."""
    job = 0
    for method, values in ACCURACY.items():
        for seed, value in enumerate(values):
            config = {
                "seed": seed, "data": {"seed": seed, "train": 1000}, "method": {"_target_": f"x.{method}", "step": len(method)},
                "logger": {"name": f"{job}"}, "resume": None if job else "somewhere",
            }  # fmt: skip
            metrics = {
                "result/test_accuracy": value,
                "cost/training_runs": 140.0,
                "cost/seconds": 3.0 + job,
                "seed": seed,
            }
            make_run(
                tmp_path / "sweep" / str(job),
                config,
                metrics,
                {"method": method, "data": "digits"},
                (f"method={method}",),
            )
            job += 1
    make_run(tmp_path / "sweep" / "6", {"seed": 9}, {"status": "failed", "error": "KeyError: 'gone'"})
    make_run(tmp_path / "sweep" / "10", {"seed": 10}, None)
    return tmp_path / "sweep"


def test_an_option_stands_for_all_that_follows_from_it_and_seeds_are_no_setting(sweep: Path) -> None:
    (made,) = compare(runs.find([sweep]))
    assert made.keys == ["method"]
    assert [(row.title, len(row.runs)) for row in made.rows] == [("method=weights", 3), ("method=counts", 3)]
    assert [run.directory.name for run in made.lost] == ["6", "10"]
    assert [run.why for run in made.lost] == ["KeyError: 'gone'", "it was never started"]


def test_a_setting_that_differs_within_an_option_is_shown(sweep: Path) -> None:
    path = sweep / "2" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["method"]["step"] = 100
    path.write_text(yaml.safe_dump(config))
    (made,) = compare(runs.find([sweep]))
    assert made.keys == ["method", "method.step"]
    assert [len(row.runs) for row in made.rows] == [2, 1, 3]


def test_equal_seeds_are_paired_and_p_is_scipys(sweep: Path) -> None:
    (made,) = compare(runs.find([sweep]), ["test_accuracy"], {"method": "counts"})
    test = made.rows[0].tests["result/test_accuracy"]
    assert test.paired
    assert test.p == pytest.approx(stats.ttest_rel(ACCURACY["weights"], ACCURACY["counts"]).pvalue)
    assert test.difference == pytest.approx(0.08 / 3)
    assert test.mark == "▲*"
    assert made.rows[1].tests == {}


def test_other_seeds_are_welch() -> None:
    a, b = np.random.default_rng(0).normal([[0.9], [0.93]], [[0.01], [0.03]], (2, 6))
    test = t_test(dict(enumerate(a)), dict(enumerate(b[:5], 1)))
    assert not test.paired
    assert test.p == pytest.approx(stats.ttest_ind(a, b[:5], equal_var=False).pvalue)


def test_holm_is_step_down_and_monotone() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


def test_without_a_spread_there_is_no_p() -> None:
    assert t_test({0: 0.5}, {0: 0.9}).p is None
    assert t_test({0: 0.5, 1: 0.5}, {0: 0.9, 1: 0.9}).p is None
    assert t_test({0: 0.1, 1: 0.2}, {5: 0.9}).mark == ""


class _Page(HTMLParser):
    """What a browser would load, and the cells of the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.attributes += [key for key, _ in attrs]


def test_the_page_loads_nothing_and_the_csv_has_every_number(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, table = sweep / "made" / "page.html", sweep / "made" / "table.csv"
    command([str(sweep), "--html", str(page), "--csv", str(table), "--title", "<weights> & counts"])
    out = capsys.readouterr().out
    assert re.search(r"weights +3 +0\.9400 ± 0\.0100", out)
    assert "KeyError: 'gone'" in out
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    assert parsed.loads == [f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"] * 2
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;weights&gt; &amp; counts" in text
    assert text.count("<circle") >= 6
    rows = list(csv.DictReader(table.open()))
    (row,) = (row for row in rows if row["method"] == "counts" and row["metric"] == "result/test_accuracy")
    assert float(row["mean"]) == pytest.approx(np.mean(ACCURACY["counts"]))
    assert float(row["sd"]) == pytest.approx(np.std(ACCURACY["counts"], ddof=1))
    assert row["test"] == "paired t"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browsed(page: Path) -> str:
    """The page's elements after its scripts have run."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.with_suffix('.browser')}"]
    done = subprocess.run([str(CHROMIUM), *flags, "--dump-dom", str(page)], capture_output=True, text=True, check=True)
    return done.stdout


MARKUP = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">' onmouseover='x\" y"


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """Runs from somebody else, with markup in every field that can reach the page."""
    for i in range(3):
        config = {"seed": MARKUP + str(i), "method": {"step": MARKUP if i else "plain"}, f"<b>{i}</b>": MARKUP}
        metrics: dict[str, Any] = {
            f"result/{MARKUP}": 0.5 + 0.1 * i,
            "result/test_accuracy": 0.5 + 0.1 * i,
            "cost/training_runs": 1.0 + i,
            "experiment": MARKUP,
        }
        if i == 2:
            metrics |= {"status": "failed", "error": MARKUP}
        make_run(tmp_path / "runs" / f"<i>{i}<i>", config, metrics, {"method": MARKUP}, (f"method={MARKUP}",))
        figures = tmp_path / "runs" / f"<i>{i}<i>" / "figures"
        (figures / "weights.png").rename(figures / "<script>alert(1)<script>.png")
        (figures / "<script>none<script>.png").write_text("<script>alert(1)</script>")
    make_run(tmp_path / "runs" / "<script>damaged<script>", {}, {f"result/{MARKUP}": [MARKUP]})
    return tmp_path / "runs"


def test_markup_in_a_run_is_shown_and_not_obeyed(received: Path) -> None:
    page = received / "page.html"
    command([str(received), "--html", str(page), "--title", MARKUP])
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert text.count("<script") == 1  # the page's own
    assert "<img src=x" not in text
    assert "<b>" not in text.replace('<b class="mark">', "")
    assert "Content-Security-Policy" in text
    parsed = _Page()
    parsed.feed(text)
    assert all(place.startswith("data:image/png;base64,") for place in parsed.loads)
    assert not [key for key in parsed.attributes if key.startswith("on")]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_runs_no_script_but_the_pages_own(received: Path) -> None:
    page = received / "page.html"
    command([str(received), "--html", str(page), "--title", "runs"])
    text = page.read_text()
    assert "<title>runs</title>" in browsed(page)
    page.write_text(text.replace("</h1>", "</h1><script>document.title = 'taken over'</script>"))
    assert "<title>runs</title>" in browsed(page), "a script got past the policy"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_click_on_a_heading_sorts_and_another_turns_it_round(sweep: Path) -> None:
    page = sweep / "page.html"
    command([str(sweep), "--html", str(page)])
    text, orders = page.read_text(), []
    for clicks in range(3):
        column = "document.querySelector(\"th[title='result/test_accuracy']\")"
        script = (column + ".click();") * clicks
        own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = text.replace("script-src ", f"script-src 'sha256-{own}' ")  # others do not run
        page.write_text(allowed.replace("</body>", f"<script>{script}</script></body>"))
        shown = browsed(page)
        body = shown.partition("<tbody>")[2].partition("</tbody>")[0]
        orders.append((re.findall(r"<tr><td>(\w+)", body), re.findall(r'aria-sort="(\w+)"', shown)))
    weights_first, counts_first = ["weights", "counts"], ["counts", "weights"]
    assert orders == [(weights_first, []), (counts_first, ["ascending"]), (weights_first, ["descending"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/place"], "no such folder: /no/such/place; give run directories"),
        (["{sweep}/0/figures"], "no run in "),
        (["{sweep}", "--metrics", "accuracy"], "no run has 'result/accuracy'; there are: test_accuracy"),
        (
            ["{sweep}", "--baseline", "method=sign"],
            "no rows fit the baseline 'method=sign'; the rows are: method=weights",
        ),
        (["{sweep}", "--baseline", "counts"], "key=value, not 'counts'"),
        (["{sweep}", "--htlm", "x"], "unrecognized arguments: --htlm x; see metagradient compare --help"),
        ([], "the following arguments are required: PATH"),
    ],
)
def test_bad_input_is_one_line(sweep: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        command([item.format(sweep=sweep) for item in arguments])


def test_the_command_imports_nothing_heavy(sweep: Path) -> None:
    code = (
        f"import sys; from metagradient.cli.command import main; main(['compare', {str(sweep)!r}])\n"
        "print([m for m in ('torch', 'wandb', 'matplotlib', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_differs_between_two_configurations_is_said() -> None:
    there, here = (
        runs.settings({"a": {"b": 1, "c": None, "e": 0}, "logger": 1}),
        runs.settings({"a": {"b": 2}, "d": "x"}),
    )
    assert runs.differences(there, here) == ["a.b: 1 -> 2", "a.e: 0 -> absent", "d: absent -> x"]


def test_a_repeated_seed_is_no_new_evidence(tmp_path: Path) -> None:
    """The same two seeds three times over: two runs, the newest of each, and a line says what was left out."""
    repeated = []
    for i, (seed, value) in enumerate([(0, 0.1), (1, 0.2), (0, 0.1), (1, 0.2), (1, 0.6), (0, 0.5)]):
        directory = tmp_path / str(i)
        directory.mkdir()
        (directory / "config.yaml").write_text("")
        os.utime(directory / "config.yaml", (i, i))
        metrics = {"result/test_accuracy": value, "status": "finished"}
        repeated.append(runs.Run(directory, "selection", {"seed": seed}, metrics))
    (made,) = compare(repeated[::-1])  # found in another order than begun
    assert by_seed(made.rows[0].runs, "result/test_accuracy") == {0: 0.5, 1: 0.6}
    assert (len(made.rows[0].runs), made.repeated) == (2, 4)
