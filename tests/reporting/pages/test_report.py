"""`report.html`: what data say is shown and not obeyed, nothing is loaded, and a browser draws it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metagradient.reporting.pages.report import (
    Distribution,
    Example,
    Histogram,
    Queries,
    Query,
    Ranking,
    Tokens,
    report_page,
)

EVIL = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&lt;\u2028'--><!--"
)
PICTURES = [np.full((1, 4, 4), k / 8) for k in range(4)]


class Parsed(HTMLParser):
    """Tags in order, and the text inside each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)


def page(evil: str = "", pictures: int = 2**20, queries: int = 3) -> str:
    """Six training examples whose every field ends in `evil`; the pictures of some are the same."""
    train = [
        Example(i, f"says {i}{evil}", f"class {i}{evil}", f"true {i}{evil}", (("id", f"p{i}{evil}"),), PICTURES[i % 4])
        for i in range(6)
    ]
    asked = [
        Query(
            Example(q, f"asked {q}{evil}", f"of {q}{evil}", image=PICTURES[q % 4]),
            [(train[q % 3], 0.5), (train[3], 0.25)],
            [(train[5], -0.125), (train[4], float("nan"))],
            Histogram.of(np.array([-1.0, 0.5, np.inf, 2.0])),
        )
        for q in range(queries)
    ]
    tabs = (
        Queries("queries", f"note{evil}", asked),
        Ranking("suspects", f"note{evil}", [(one, 1.5 - one.index) for one in train]),
        Distribution(f"scores{evil}", "", [(f"all{evil}", Histogram.of(np.arange(100.0)))]),
    )
    return report_page(f"title{evil}", f"note{evil}", tabs, pictures)


def data_of(text: str) -> dict[str, Any]:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    found: dict[str, Any] = json.loads(block)
    return found


def test_markup_in_every_field_is_text() -> None:
    plain, evil = Parsed(page()), Parsed(page(EVIL))
    names = [tag for tag, _ in plain.tags]
    assert [tag for tag, _ in evil.tags] == names
    assert names.count("script") == 2
    assert "".join(evil.text["h1"]) == f"title{EVIL}"
    block = next(text for text in evil.text["script"] if text.startswith("{"))
    assert not set("<>&\u2028") & set(block)
    data = json.loads(block)
    assert data["tabs"][2]["name"] == f"scores{EVIL}"
    one = next(example for example in data["examples"] if example["says"].startswith("says 3"))
    assert one == {
        "index": 3,
        "says": f"says 3{EVIL}",
        "label": f"class 3{EVIL}",
        "truth": f"true 3{EVIL}",
        "place": [["id", f"p3{EVIL}"]],
        "picture": one["picture"],
    }


def test_the_policy_lets_in_our_style_and_script_alone() -> None:
    parsed = Parsed(page(EVIL))
    policy = next(said["content"] for tag, said in parsed.tags if tag == "meta" and "http-equiv" in said)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    own = next(text for text in parsed.text["script"] if "use strict" in text)
    for rule, text in (("script-src", own), ("style-src", "".join(parsed.text["style"]))):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not any({"src", "href", "style", "onerror"} & said.keys() for _, said in parsed.tags)
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", own)


def test_pictures_are_held_once_and_only_until_there_is_no_room() -> None:
    data = data_of(page())
    assert len(data["pictures"]) == 4
    examples, pictures = data["examples"], data["pictures"]
    for example in examples:
        raw = base64.b64decode(pictures[example["picture"]].partition(",")[2])
        assert Image.open(BytesIO(raw)).getpixel((0, 0)) == round(255 * (1 - example["index"] % 4 / 8))  # ink on white
    room = len(pictures[0]) + len(pictures[1])
    few = page(pictures=room)
    assert len(data_of(few)["pictures"]) == 2
    assert ["picture" in example for example in data_of(few)["examples"]][:3] == [True, True, False]
    assert "images are left out, so that the page stays below" in few


def test_large_photographs_become_small_ones() -> None:
    image = np.random.default_rng(0).random((3, 200, 100))
    (uri,) = data_of(report_page("", "", [Ranking("one", "", [(Example(0, image=image), 1.0)])]))["pictures"]
    kind, _, raw = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(raw))).size == (48, 96)


def test_histograms_count_every_finite_value() -> None:
    histogram = Histogram.of(np.array([[-1.0, 0.5], [np.nan, 2.0], [np.inf, 2.0]]))
    assert (histogram.low, histogram.high, sum(histogram.counts)) == (-1.0, 2.0, 4)
    assert (histogram.counts[0], histogram.counts[-1]) == (1, 2)
    assert Histogram.of(np.array([np.nan])).counts == ()


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("no Chromium or Chrome on the path")


def drawn(file: Path, place: str, folder: Path) -> tuple[str, list[str]]:
    """The page's DOM as a browser drew it, and what the console said."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", f"{file.as_uri()}#{place}"], capture_output=True, timeout=120, check=True
    )
    return done.stdout.decode(), [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(
    ("place", "shown", "cards"), [("", "asked 0", 5), ("queries/998", "asked 998", 5), ("suspects", "says 5", 6)]
)
def test_a_browser_draws_a_thousand_queries_and_obeys_none_of_the_data(
    place: str, shown: str, cards: int, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(page(EVIL, queries=1000), encoding="utf-8")
    text, said = drawn(tmp_path / "report.html", place, tmp_path / "profile")
    assert said == []
    found = Parsed(text)
    names = [tag for tag, _ in found.tags]
    assert f"{shown}{EVIL}" in found.text["div"]
    assert "".join(found.text["title"][0]) == f"title{EVIL}"
    assert (names.count("script"), names.count("figure"), names.count("img")) == (2, cards, cards)
    assert not any("onerror" in said for _, said in found.tags)
    assert found.text["button"][:3] == ["queries", "suspects", f"scores{EVIL}"]
    assert names.count("li") == (0 if place == "suspects" else 100)


def told_by_tokens() -> str:
    """A query and two training texts; of the first the tokens' scores are known."""
    pieces, targets = (f"say{EVIL}", "4", "2", "<end>"), (False, True, True, True)
    train = [Example(i, says="42", truth="43" if i == 9 else "", tokens=Tokens(pieces, targets)) for i in (5, 9)]
    query = Query(
        Example(0, says="42", tokens=Tokens(pieces, targets, losses=(2.0, 0.5, 0.0))),
        [(train[0], 0.5)],
        [(train[1], -0.5)],
        Histogram.of(np.arange(3.0)),
        token_scores={5: (0.4, -0.1, 0.0)},
    )
    return report_page("", "", [Queries("queries", "", [query])])


class Spans(HTMLParser):
    """(class, title, text) of the tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "div" or tag == "span":
            self._open.append((tag, said.get("class") or ""))
            if tag == "span" and any("tokens" in kind for name, kind in self._open if name == "div"):
                self.found.append((said.get("class") or "", said.get("title") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "span"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "span" and any("tokens" in kind for _, kind in self._open):
            kind, title, _ = self.found[-1]
            self.found[-1] = (kind, title, data)


def test_tokens_are_shaded_by_their_score_or_loss(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(told_by_tokens(), encoding="utf-8")
    text, said = drawn(tmp_path / "report.html", "", tmp_path / "profile")
    assert said == []
    assert "should be 43" in Parsed(text).text["span"]
    spans = Spans(text).found
    prompt = ("prompt", "", f"say{EVIL}")
    assert spans[:4] == [prompt, ("loss5", "loss 2", "4"), ("loss2", "loss 0.5", "2"), ("", "loss 0", "<end>")]
    assert spans[4:8] == [prompt, ("up5", "score +0.4", "4"), ("down2", "score -0.1", "2"), ("", "score 0", "<end>")]
    assert spans[8:] == [prompt, ("", "", "4"), ("", "", "2"), ("", "", "<end>")]


def test_a_long_text_is_cut_by_tokens() -> None:
    tokens = Tokens(tuple(map(str, range(600))), tuple(i % 2 == 1 for i in range(600)), tuple(map(float, range(300))))
    (example,) = data_of(report_page("", "", [Ranking("", "", [(Example(0, tokens=tokens), 1.0)])]))["examples"]
    assert example["tokens"]["pieces"][510:] == ["510", "511", " …"]
    assert (sum(example["tokens"]["targets"]), len(example["tokens"]["losses"])) == (256, 256)


def test_a_browser_refuses_a_script_that_is_not_ours(tmp_path: Path) -> None:
    """Were data ever to become markup, the policy would still not run it."""
    text = page().replace("</body>", "<script>document.title = 'owned'</script></body>")
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    text, said = drawn(tmp_path / "report.html", "", tmp_path / "profile")
    assert "Content Security Policy" in said[0]
    assert Parsed(text).text["title"][0] == "title"
