"""`metagradient attribution` of a language model's texts: scores, tokens, sources, and what removing the top rows does."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from console import Done, run_in, scratch_stays  # noqa: F401
from safetensors.torch import load_file

SMALL = ["data=made_instructions", "data.train=60", "data.validation=10", "data.test=12", "model=gpt", "model.layers=1"]
SMALL += ["model.width=16", "learner=adam", "learner.epochs=null", "learner.steps=12", "learner.batch_size=20"]
SMALL += [
    "queries=4",
    "held_out=4",
    "drop=[0.05]",
    "learner.optimizer.eps_root=1e-6",
    "retrainings=8",
    "leave_one_out=null",
    "smoothness=null",
    "damping=1.0",
]
SMALL += ["learner.normalize=batch", "labels=1", "logger.mode=disabled", "at_once=20"]
NEW = ["methods=[exact,dropout:64,bm25,random]", "qld={queries:2,share:0.1,randoms:2}", "token_scores=true"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "cache"))


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "attribution", *SMALL, *overrides)


def test_a_language_model_is_asked_which_texts_made_it_say_this(tmp_path: Path) -> None:
    status, out, err = run(tmp_path, *NEW, "data.target=pool", "source_top=5")
    assert status == 0, err
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["result/lds_exact_drop0.05"] > 0.9
    assert metrics["result/qld"] == metrics["result/qld_exact_top0.1"] > max(0.0, metrics["result/qld_random_top0.1"])
    assert metrics["result/qld_low"] <= metrics["result/qld"] <= metrics["result/qld_high"]
    assert "result/qld_random" in metrics
    assert 0 < metrics["result/source_precision_chance"] < 0.5
    assert all(
        0 <= metrics[f"result/source_precision_{name}"] <= 1 for name in ("exact", "dropout_64", "bm25", "random")
    )
    assert 0 <= metrics["result/mislabel_auc_dropout_64_self_influence"] <= 1  # wrong sums and gibberish
    assert "of the top 5, from the query's source" in out
    scores = load_file(folder / "artifacts" / "scores.safetensors")["scores"]
    tokens = load_file(folder / "artifacts" / "token_scores.safetensors")["scores"]
    rows = pd.read_csv(folder / "artifacts" / "token_rows.csv", keep_default_na=False)
    sums = torch.zeros_like(scores).index_add(0, torch.tensor(rows["train_index"].to_numpy()), tokens)
    torch.testing.assert_close(sums, scores, rtol=1e-3, atol=1e-5)
    assert not rows["token"].str.contains("assistant").any()  # the prompt's tokens are no targets
    assert (rows.groupby("train_index")["token"].last() == "<|end|>").all()
    assert "Grey tokens are the prompt" in (folder / "artifacts" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["qld.queries=5"], "qld.queries=5, but queries=4: set qld.queries=4"),
        (["qld={queries:1,share:0.001,randoms:1}"], "removes 0 of them"),
        (
            ["data=digits", "model=linear", "data.train=60", "data.validation=10", "methods=[bm25]"],
            "bm25 compares the words of texts",
        ),
        (
            ["data=digits", "model=linear", "data.train=60", "data.validation=10", "token_scores=true"],
            "token_scores is of language models",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_before_the_retrainings(overrides: list[str], said: str, tmp_path: Path) -> None:
    small = [x for x in SMALL if "data." not in x and "model." not in x] if "data=digits" in overrides else SMALL
    status, _, err = run_in(tmp_path, "attribution", *small, *overrides)
    assert status == 2
    assert said in err
    assert not (tmp_path / "cache").exists()
