"""Pairs of images and texts: each source gives the same pairs, and says what it leaves out."""

import io
import json
import logging
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import metagradient as mg
from metagradient.data import drawn_digits, image_text_pairs
from metagradient.data.pairs.texts import Pieces, Words

N = 12
WORDS = [f"thing number {i % 5}" for i in range(N)]


def png(i: int) -> bytes:
    """4x4 pixels, all of a colour of its own."""
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 20 * i, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path) -> Path:
    for i in range(N):
        (root / f"{i:02}.png").write_bytes(png(i))
        (root / f"{i:02}.txt").write_text(WORDS[i])
    return root


def parquet(root: Path, **columns: list[Any]) -> Path:
    images = [{"bytes": png(i), "path": None} for i in range(N)]
    pq.write_table(pa.table({"image": images, "caption": WORDS} | columns), root / "pairs.parquet")
    return root / "pairs.parquet"


def json_lines(root: Path) -> Path:
    folder(root)
    rows = [{"image": f"{i:02}.png", "caption": WORDS[i]} for i in range(N)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "pairs.jsonl"


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards(root: Path) -> Path:
    """Three shards as DataComp ships them; texts of the last in JSON alone."""
    for number in range(3):
        members = {}
        for i in range(4 * number, 4 * number + 4):
            members[f"{i:08}.png"] = png(i)
            members[f"{i:08}.json"] = json.dumps({"caption": WORDS[i], "uid": str(i), "url": f"u{i % 2}"}).encode()
            if number < 2:
                members[f"{i:08}.txt"] = WORDS[i].encode()
        shard(root / f"{number:08}.tar", members)
    return root


@pytest.mark.parametrize("make", [folder, parquet, json_lines, shards])
def test_each_source_gives_the_same_pairs(make: Any, tmp_path: Path) -> None:
    splits = image_text_pairs(str(make(tmp_path)), size=4, length=3, validation=3, test=2)
    assert [len(table["x"]) for table in (splits.train, splits.validation, splits.test)] == [7, 3, 2]
    for name in ("train", "validation", "test"):
        table = getattr(splits, name)
        for x, y, pair, text, place in zip(
            table["x"], table["y"], table["pair"], splits.captions[name], splits.origins[name].places, strict=True
        ):
            i = round(float(x.mean()) * 255 / 20)
            assert bool((x == 20 * i / 255).all())
            assert text == WORDS[i]
            assert str(i) in str(place)
            assert torch.equal(y, splits.encoder([text])[0])
            same = [int(other) == int(pair) for other in table["pair"]]
            assert same == [text == other for other in splits.captions[name]] or name != "train"


def test_shards_are_read_when_asked_for_bitwise_with_two_workers_and_resumed_in_the_middle(tmp_path: Path) -> None:
    def run(workers: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
        splits = image_text_pairs(str(shards(tmp_path)), size=4, length=3, validation=3, test=2, workers=workers)
        source = mg.Source(splits.train["x"], ("x",), workers=workers)
        examples = {**mg.Batches(source, batch_size=1).examples, **{k: v for k, v in splits.train.items() if k != "x"}}
        batches = mg.Batches(examples, batch_size=3, epochs=2)
        batches.from_step(start)
        return [batch.fields for batch in batches]

    alone, together, later = run(0), run(2), run(2, start=2)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("x", "y", "pair"))
    assert len(later) == len(alone) - 2
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(alone[2:], later, strict=True))
    held = image_text_pairs(str(tmp_path), size=4, length=3, validation=3, test=2)
    order = mg.epoch_plan(7, 3, 2, 0)
    assert torch.equal(alone[0]["x"], held.train["x"][order[0]])


def test_what_is_left_out_of_shards_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards(tmp_path)
    shard(
        tmp_path / "odd.tar",
        {
            "a.png": png(0),
            "b.txt": b"no image",
            "c.png": png(1)[:40],
            "c.txt": b"broken",
            "d.png": png(2),
            "d.txt": b" ",
        },
    )
    whole = (tmp_path / "00000001.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(whole[: 5 * 1024 + 100])  # in the middle of a header
    (tmp_path / "shorter.tar").write_bytes(whole[:600])  # and of an image
    with caplog.at_level(logging.INFO):
        splits = image_text_pairs(str(tmp_path), size=4, validation=3, test=2)
    assert "3 pairs without text are left out: odd.tar/a, odd.tar/d, shorter.tar/00000004" in caplog.text
    assert "1 pairs without image are left out: odd.tar/b" in caplog.text
    assert "2 shards are cut short, and read up to there: short.tar, shorter.tar" in caplog.text
    assert "1 pairs whose image is missing, no image or cut short are left out: pairs odd.tar/c" in caplog.text
    kept = sum(len(origin.places) for origin in splits.origins.values())
    assert N < kept < N + 4
    lazily = image_text_pairs(str(tmp_path), size=4, validation=3, test=2, workers=0, check=False)
    assert len(lazily.train["x"]) == kept + 1 - 5  # the broken image is found when a step reads it


def test_a_target_style_is_kept_out_of_the_pool(tmp_path: Path) -> None:
    """Of the target one pair a concept, halves for validation and test; the pool's captions say keywords, the others' not."""
    style = ["mine", "yours"] * 6
    concept = ["cat", "cat", "dog", None, "cat", "cow", "owl", "owl", None, "owl", "ant", "ant"]
    keywords = [["alpha", "beta", "gamma"]] * N
    path = parquet(tmp_path, style=style, concept=concept, keywords=keywords)
    splits = image_text_pairs(
        str(path), 4, style="style", target="mine", concept="concept", oracle="concept", extra="keywords", extra_words=2,
        validation=0.5, test=0.5,
    )  # fmt: skip
    assert set(splits.sources["train"]) == {"yours"}
    assert len(splits.train["x"]) == 6
    held = [*splits.concepts["validation"], *splits.concepts["test"]]
    assert sorted(held) == ["ant", "cat", "dog", "owl"]
    assert splits.oracle is not None
    assert [bool(wanted) for wanted in splits.oracle] == [c != "" for c in splits.concepts["train"]]
    assert {"alpha", "beta"} < set(splits.encoder.words)  # type: ignore[attr-defined]
    assert "gamma" not in splits.encoder.words  # type: ignore[attr-defined]
    assert all("alpha" not in text for texts in splits.captions.values() for text in texts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "mine"}, r"data\.style="),
        ({"target": "theirs", "style": "style"}, r"no such style; there are mine, yours"),
        ({"caption": "text"}, r"data\.caption=text: no such column"),
        ({"image": "picture"}, r"data\.image=picture: no such column"),
        ({"style": "stile"}, r"did you mean data\.style=style"),
        ({"validation": 20}, "cannot be divided"),
        ({"target": "mine", "style": "style", "validation": 5, "test": 5}, "10 of the 5 concepts of mine"),
        ({"tokens": "wordpiece"}, "words, bpe or the path of a tokenizer.json"),
        ({"tokens": "bpe", "vocab": 100}, r"data\.vocab=1024"),
        ({"channels": 2}, "1 or 3"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = parquet(tmp_path, style=["mine", "yours"] * 6)
    with pytest.raises(ValueError, match=said):
        image_text_pairs(str(path), 4, **settings)


def test_places_without_pairs_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder of KEY"):
        image_text_pairs(str(tmp_path / "nothing"))
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="holds no pairs: give KEY"):
        image_text_pairs(str(tmp_path))
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"b\.tar cannot be read as a tar file"):
        image_text_pairs(str(tmp_path / "b.tar"))


def test_words_are_numbered_by_frequency_and_pieces_give_the_text_back(tmp_path: Path) -> None:
    texts = ["A red cat!", "a red_dog", "the cat", "a"]
    words = Words.of(texts, 5, 3)
    assert words.words == ("a", "cat", "red")
    assert words(["A blue cat and a red one", ""]).tolist() == [[2, 1, 3], [0, 0, 0]]
    pieces = Pieces.of(texts, 300, 12)
    tokens = pieces(["a red über-cat", "a"])
    assert pieces.tokenizer.decode([int(i) - 1 for i in tokens[0] if i]).strip() == "a red über-cat"
    assert int(tokens.max()) < pieces.vocab
    pieces.tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(Pieces.from_file(str(tmp_path / "tokenizer.json"), 12)(["a red cat"]), pieces(["a red cat"]))


def test_drawn_numbers_say_what_they_show_but_for_two_styles() -> None:
    splits = drawn_digits(train=600, validation=50, test=50)
    by_style: dict[str, list[bool]] = {}
    for style, text, concept in zip(
        splits.sources["train"], splits.captions["train"], splits.concepts["train"], strict=True
    ):
        by_style.setdefault(style, []).append(text == concept)
    assert {style: (len(right), all(right), any(right)) for style, right in by_style.items()} == {
        style: (100, style not in ("mislabelled", "unnamed"), style not in ("mislabelled", "unnamed"))
        for style in by_style
    }
    assert set(splits.sources["test"]) == {"slanted"}
    assert splits.oracle is not None
    assert int(splits.oracle.sum()) == 300
    again = drawn_digits(train=600, validation=50, test=50)
    assert all(torch.equal(splits.train[name], again.train[name]) for name in splits.train)
    with pytest.raises(ValueError, match="at least 6, 1 and 1"):
        drawn_digits(train=5)
