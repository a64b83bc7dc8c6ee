"""`metagradient attribution aggregate=... self_influence=true store=...`: files read back, and what is refused."""

import csv
import json
from pathlib import Path

import pytest
import torch
from by_hand import losses, task_of
from console import Done, run_in, scratch_stays  # noqa: F401
from safetensors.torch import load_file
from scipy.stats import spearmanr

import metagradient as mg
from metagradient import attribution as at
from metagradient.evaluation import subsets
from metagradient.files import read_sealed, write_sealed
from metagradient.studies.saved import load
from metagradient.training.random import fold_in

SMALL = ["data.train=120", "learner.epochs=2", "queries=6", "held_out=5", "retrainings=8", "logger.mode=disabled"]
SMALL += ["smoothness=null", "leave_one_out=null", "damping=30.0"]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "attribution", *SMALL, *overrides)


def newest(directory: Path) -> Path:
    return max((directory / "outputs" / "attribution").iterdir())


def columns(file: Path) -> dict[str, torch.Tensor]:
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    return {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_scores_for_the_queries_together_and_of_each_row_for_itself(tmp_path: Path) -> None:
    words = ["exact", "exact:alpha", "dropout:64", "gradient_dot", "cosine"]
    asked = ["aggregate=queries", "self_influence=true", "drop=[0.5]"]
    status, out, err = run(tmp_path, f"methods=[{','.join(words)}]", *asked)
    assert status == 0, err
    assert "self_influence=true is not for cosine" in err + out
    folder = newest(tmp_path) / "artifacts"
    names = {"exact": "", "exact_0.5": "_exact_0.5", "dropout:64": "_dropout_64", "cosine": "_cosine"}
    together = columns(folder / "aggregate_scores.csv")
    assert list(together) == ["index", "label", "exact", "exact_0.5", "dropout:64", "gradient_dot", "cosine"]
    assert torch.equal(together["index"], torch.arange(120.0))
    for name, stem in names.items():
        matrix = load_file(folder / f"scores{stem}.safetensors")["scores"]
        torch.testing.assert_close(together[name], matrix.mean(1), rtol=1e-3, atol=1e-7)
    alone = columns(folder / "self_influence.csv")
    assert list(alone) == ["index", "label", "exact", "exact_0.5", "dropout:64", "gradient_dot"]
    assert not list(folder.glob("*.progress"))

    cfg, splits, routine = task_of(newest(tmp_path))
    batches = routine.batches(splits.train, cfg.seed)
    trained = at.TrainedRun.of(routine.learner(cfg.seed, len(batches)), batches)
    queries = {name: field[:6] for name, field in splits.test.items()}
    for word, name, weight in (
        ("exact", "exact", None),
        ("exact:alpha", "exact_0.5", 0.5),
        ("dropout:64", "dropout:64", None),
    ):
        method = at.method(word, damping=30.0)  # a notebook gets what the command line gets
        torch.testing.assert_close(method.self_influence(trained, weight=weight), alone[name])
        torch.testing.assert_close(method.aggregate(trained, queries, weight=weight), together[name])

    kept, true = retrained(newest(tmp_path))
    expected = spearmanr((~kept).float() @ together["exact"], true.mean(1)).statistic
    found = json.loads((newest(tmp_path) / "metrics.json").read_text())["result/lds_aggregate_exact_drop0.5"]
    assert found == pytest.approx(float(expected), abs=1e-6)


def retrained(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows kept, and the queries' losses of every model retrained alone."""
    cfg, splits, routine = task_of(folder)
    kept = subsets(120, 0.5, cfg.retrainings, fold_in(cfg.seed, 7))
    queries = {name: field[:6] for name, field in splits.test.items()}
    return kept, torch.stack([losses(routine.train(splits.train, cfg.seed, mask.float()), queries) for mask in kept])


def test_a_whole_split_is_asked_about(tmp_path: Path) -> None:
    assert (
        run(
            tmp_path, "methods=[gradient_dot]", "drop=[]", "aggregate=validation", "data.validation=70", "held_out=500"
        )[0]
        == 0
    )
    folder = newest(tmp_path)
    assert not any("lds" in key for key in json.loads((folder / "metrics.json").read_text()))
    saved = load(folder)
    learner, splits = saved.learner(), saved.data()
    gradients = []
    for examples in (splits.train, splits.validation):
        losses = learner.losses(mg.Batch(0, torch.arange(len(examples["y"])), examples))
        parts = [torch.autograd.grad(x, list(learner.parameters()), retain_graph=True) for x in losses]
        gradients.append(torch.stack([torch.cat([p.flatten() for p in part]) for part in parts]))
    expected = gradients[0] @ gradients[1].mean(0) / 120
    assert len(gradients[1]) == 70
    found = columns(folder / "artifacts" / "aggregate_scores.csv")["gradient_dot"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)
    with (folder / "artifacts" / "top_examples.csv").open(newline="") as file:
        said = {int(row["query"]): row["query_said"] for row in csv.DictReader(file)}
    with torch.no_grad():
        verdicts = learner(splits.test["x"][: len(said)]).argmax(1).tolist()
    assert [said[i] for i in range(len(said))] == [splits.classes[c] for c in verdicts]


@pytest.mark.usefixtures("scratch_stays")
def test_what_replays_gave_is_found_again(tmp_path: Path) -> None:
    asked = ["methods=[exact]", "drop=[]", "aggregate=queries", "self_influence=true", "hydra.run.dir=here"]
    assert run(tmp_path, *asked, "queries_per_replay=50")[0] == 0
    folder = tmp_path / "here"
    cost = json.loads((folder / "metrics.json").read_text())["cost/training_runs"]
    note = folder / "artifacts" / "self_influence_exact.progress.progress"
    kept = read_sealed(note)
    assert [block[0] for block in kept["blocks"]] == [50, 100, 120]
    kept["blocks"] = kept["blocks"][:1]
    write_sealed(note, kept)
    before = columns(folder / "artifacts" / "self_influence.csv")
    (folder / "metrics.json").unlink()
    status, _, err = run(tmp_path, *asked, "queries_per_replay=50", f"resume={folder}")
    assert status == 0, err
    torch.testing.assert_close(columns(folder / "artifacts" / "self_influence.csv"), before)
    assert json.loads((folder / "metrics.json").read_text())["cost/training_runs"] == cost


@pytest.mark.slow
def test_a_second_run_reads_the_store(tmp_path: Path, seen: list[int]) -> None:
    asked = ["methods=[dropout:64,gradient_dot]", "drop=[]"]
    first = run(tmp_path, *asked, "store=kept")
    assert first.status == 0, first.err
    assert "store=kept is not for gradient_dot" in first.err + first.out
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"dropout_64"}
    assert run(tmp_path, asked[0], *asked[1:], "queries=9")[0] == 0
    expected = load_file(newest(tmp_path) / "artifacts" / "scores.safetensors")["scores"]
    seen.clear()
    assert run(tmp_path, "methods=[dropout:64]", "drop=[]", "queries=9", "store=kept")[0] == 0
    assert seen == [2, 9]
    stored = load_file(newest(tmp_path) / "artifacts" / "scores.safetensors")["scores"]
    assert (stored - expected).abs().max() <= 1e-6 * expected.abs().max()  # products of other shapes round otherwise
    assert json.loads((newest(tmp_path) / "metrics.json").read_text())["cost/training_runs"] == 1
    for changed, says in (("learner.epochs=3", "another model"), ("mask_seed=1", "another compressor")):
        status, _, err = run(tmp_path, "methods=[dropout:64]", "drop=[]", "store=kept", changed)
        assert status == 2
        assert says in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["aggregate=all"], "queries, validation, test"),
        (["store=kept", "methods=[exact,pca:8]"], "not for exact, pca:8"),
        (["self_influence=true", "methods=[cosine]"], "not for cosine"),
        (["self_influence=maybe"], "self_influence"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    status, _, err = run(tmp_path, "drop=[]", *overrides)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("metagradient attribution:")]
    assert len(lines) == 1, err
    assert says in lines[0]
