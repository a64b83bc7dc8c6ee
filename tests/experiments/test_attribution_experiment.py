"""`metagradient attribution`, end to end on a small budget, and what it says to bad input."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from by_hand import losses, task_of
from console import Done, run_in, scratch_stays  # noqa: F401
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import spearmanr

import metagradient as mg
from metagradient import attribution as at
from metagradient import data, models
from metagradient.attribution.methods import packages
from metagradient.errors import UserError
from metagradient.evaluation import subsets
from metagradient.files import read_sealed, write_sealed
from metagradient.studies.attribution import report
from metagradient.training.random import fold_in

SMALL = ["data.train=150", "learner.epochs=3", "queries=6", "held_out=5", "retrainings=12", "logger.mode=disabled"]
SMALL += ["smoothness=null", "leave_one_out=null"]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "attribution", *overrides)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


ALL = (
    "methods=[exact,exact:alpha,none,none:alpha,dropout:256,dropout:256:path,factor_dropout:256,gaussian:64,factor_gaussian:256,sjlt:64,"
    "dropout_sjlt:64,pca:32,gradient_dot,cosine,tracin:2,trak:2]"
)


RACE = "race={methods:[dropout:32,sjlt:32,pca:32],examples:40,repeats:1}"


@pytest.mark.slow
def test_every_method_on_a_run_with_wrong_labels(tmp_path: Path) -> None:
    few = ["dampings=[1.0,30.0,300.0]", "drop=[0.1,0.5]", "labels=1", "data.noise.fraction=0.1", "brittleness=[5,30]"]
    status, out, err = run(tmp_path, *SMALL, *few, ALL, "trak_k=64", "none_primal=100", RACE, "leave_one_out=30")
    assert status == 0, err
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    found = {key: value for key, value in metrics.items() if key.startswith("result/lds_") and key.endswith("drop0.5")}
    assert len(found) == len(ALL.partition("=")[2].split(","))
    assert min(found.values()) > 0.5  # scores of the wrong sign give less than -.5, unrelated ones about 0
    assert found["result/lds_exact_drop0.5"] > 0.95
    assert found["result/lds_exact_alpha_drop0.5"] > 0.95
    assert min(found["result/lds_none_drop0.5"], found["result/lds_none_alpha_drop0.5"]) > 0.8
    assert metrics["result/lds_low"] < metrics["result/lds"] < metrics["result/lds_high"]
    assert 0.12 < metrics["result/test_accuracy"] < 0.25  # six steps only
    assert metrics["result/leave_one_out_spearman_exact"] > 0.95
    assert metrics["result/leave_one_out_pearson_exact"] > 0.95
    assert 0.5 < metrics["result/mislabel_auc"] <= 1
    assert "flipped" in out
    assert metrics["result/compression_ratio_dropout_32"] == 1
    assert metrics["result/compression_ratio_sjlt_32"] > 0
    scores = load_file(folder / "artifacts" / "scores.safetensors")["scores"]
    assert scores.shape == (150, 6)
    assert metrics["result/lds_exact_drop0.5"] == pytest.approx(lds_by_hand(folder, scores), abs=1e-6)
    assert {p.stem for p in (folder / "figures").iterdir()} == {"lds", "pareto", "inspection"}
    assert not list(folder.glob("**/*.progress")), "left over"
    for name in ("top_examples.png", "report.html", "lds.csv", "wrong_labels_found.csv"):
        assert (folder / "artifacts" / name).stat().st_size > 0
    told_of_every_query(folder, scores)
    assert len(list((folder / "artifacts").glob("scores*.safetensors"))) == 18
    nats = {name: unit_of(folder, f"scores{name}") == "nats" for name in ("", "_dropout_256", "_gradient_dot")}
    assert nats == {"": True, "_dropout_256": True, "_gradient_dot": False}

    # The same scores from a file are judged alike, and nothing is retrained for it.
    np.save(tmp_path / "theirs.npy", scores.numpy())
    status, _, err = run(tmp_path, *SMALL, *few[:4], f"methods=[{tmp_path / 'theirs.npy'}]")
    assert status == 0, err
    newest = max((tmp_path / "outputs" / "attribution").iterdir())
    again = json.loads((newest / "metrics.json").read_text())
    assert again["result/lds_theirs_drop0.5"] == pytest.approx(metrics["result/lds_exact_drop0.5"])
    assert again["cost/training_runs"] == 1


def told_of_every_query(folder: Path, scores: torch.Tensor) -> None:
    """top_examples.csv against an argsort of the scores, and the rows' names against the data."""
    top, train, queries = (
        pd.read_csv(folder / "artifacts" / f"{name}.csv", dtype=str)
        for name in ("top_examples", "train_rows", "query_rows")
    )
    order, splits = scores.numpy().argsort(axis=0)[::-1], task_of(folder).splits
    for q in range(6):
        mine = top[top["query"] == str(q)].set_index("rank")["train_index"].astype(int)
        assert [mine[str(rank)] for rank in range(1, 11)] == order[:10, q].tolist()
        assert [mine[str(-rank)] for rank in range(1, 11)] == order[::-1][:10, q].tolist()
    assert list(train) == ["index", "label", "truth"]
    assert train["label"].astype(int).tolist() == splits.train["y"].tolist()
    assert (train["label"] != train["truth"]).tolist() == splits.truth.wrong.tolist()
    assert queries["label"].astype(int).tolist() == splits.test["y"][:6].tolist()


def lds_by_hand(folder: Path, scores: torch.Tensor) -> float:
    """Every model retrained alone, and scipy's rank correlation."""
    cfg, splits, routine = task_of(folder)
    kept = subsets(150, 0.5, cfg.retrainings, fold_in(cfg.seed, 7))
    queries = {name: field[:6] for name, field in splits.test.items()}
    true = torch.stack([losses(routine.train(splits.train, cfg.seed, mask.float()), queries) for mask in kept])
    predicted = (~kept).float() @ scores
    return float(np.mean([spearmanr(predicted[:, q], true[:, q]).statistic for q in range(6)]))


@pytest.mark.slow
@pytest.mark.usefixtures("scratch_stays")
def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, "methods=[exact]", "queries_per_replay=2")[0] == 0
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    file = folder / "artifacts" / "scores.safetensors"
    whole = load_file(file)["scores"].clone()
    cost = json.loads((folder / "metrics.json").read_text())["cost/training_runs"]

    def cut_short_after(blocks: int, first: float) -> None:
        """As if killed so early; and, for whoever checks that nothing is computed again, with another first score."""
        raw = np.memmap(file, "<f4", "r+", offset=file.stat().st_size - whole.nbytes, shape=(150, 6))
        raw[:, 2 * blocks :] = 0
        raw[0, 0] = first
        raw.flush()
        note = read_sealed(progress := file.with_name(file.name + ".progress"))
        note["blocks"] = note["blocks"][:blocks]
        note["blocks"][0][2] = hashlib.sha256(np.ascontiguousarray(raw[:, :2]).tobytes()).hexdigest()
        write_sealed(progress, note)
        (folder / "metrics.json").unlink()

    cut_short_after(2, first=7.0)
    status, _, err = run(tmp_path, *SMALL, "methods=[exact]", "queries_per_replay=2", f"resume={folder}")
    assert status == 0, err
    whole[0, 0] = 7.0
    assert torch.equal(load_file(file)["scores"], whole)
    assert json.loads((folder / "metrics.json").read_text())["cost/training_runs"] == cost
    status, _, err = run(tmp_path, *SMALL, "methods=[exact]", "learner.epochs=4", f"resume={folder}")
    assert status == 2
    assert "learner.epochs" in err


def test_without_retrainings_there_are_scores_all_the_same(tmp_path: Path) -> None:
    """With the run's own damping nothing is tuned, so nothing need be retrained; both methods share one training."""
    asked = ["drop=[]", "damping=run", "methods=[dropout:256:path,dropout:256,exact]"]
    status, _, err = run(tmp_path, *SMALL, *asked)
    assert status == 0, err
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    names = ("scores", "scores_dropout_256", "scores_exact")
    path, end, exact = (load_file(folder / "artifacts" / f"{name}.safetensors")["scores"] for name in names)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "objective" not in metrics
    assert not any("lds" in name for name in metrics)
    agree = [float(torch.stack([x.flatten(), exact.flatten()]).corrcoef()[0, 1]) for x in (path, end)]
    assert min(agree) > 0.5
    assert agree[0] > agree[1]
    assert (folder / "artifacts" / "top_examples.png").exists()


def test_scores_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    """Two runs in one directory, not resumed: what lies there is of other checkpoints, and is refused."""
    tiny = [*SMALL, "data.train=60", "drop=[]", "damping=1", "methods=[dropout:64:path]", "hydra.run.dir=here"]
    assert run(tmp_path, *tiny, "checkpoints=1")[0] == 0
    assert run(tmp_path, *tiny, "checkpoints=1")[0] == 0
    status, _, err = run(tmp_path, *tiny, "checkpoints=3")
    assert status == 2
    assert "scores.safetensors" in err


def test_products_of_gradients_are_no_nats(tmp_path: Path) -> None:
    tiny = ["data.train=60", "retrainings=3", "drop=[0.5]", "damping=1", "methods=[dropout:64,none]"]
    assert run(tmp_path, *SMALL, *tiny, "curvature=identity")[0] == 0
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    assert unit_of(folder, "scores") == unit_of(folder, "scores_none") == "of the method"


def unit_of(folder: Path, name: str) -> str:
    with safe_open(folder / "artifacts" / f"{name}.safetensors", framework="pt") as file:
        return file.metadata()["unit"]


def test_only_compression_alone_is_on_the_pareto_figure() -> None:
    words = ["exact", "dropout:8", "dropout:8:path", "dropout:8:alpha", "sjlt:4", "none"]
    rows = [{"method": w, "drop": d, "k": 8, "compression": 0.1, "lds": 0.5} for w in words for d in (0.1, 0.5)]
    points = report.compressors_of(rows, 0.5)
    assert [point["compressor"] for point in points] == ["dropout", "sjlt"]


def test_packages_get_the_trained_model_and_the_learner_keeps_the_runs_start() -> None:
    torch.manual_seed(0)
    learner = mg.Classifier(models.linear((4,), 3), mg.SGD(), 0.5)
    start = mg.initial_state(learner).params.clone()
    examples = {"x": torch.randn(6, 4), "y": torch.arange(6) % 3}
    state = mg.train(learner, mg.Batches(examples, mg.full_batch_plan(6, 3)))
    model = packages._model(SimpleNamespace(learner=learner, state=state, train=examples))  # type: ignore[arg-type]
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), state.params)
    assert torch.equal(mg.initial_state(learner).params, start)
    soft = SimpleNamespace(learner=learner, state=state, train={**examples, "y": torch.eye(3)[examples["y"]]})
    with pytest.raises(UserError, match=r"other packages read class numbers \[n\]"):
        packages._model(soft)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "module"), [("dattri_trak", "dattri"), ("traker", "trak"), ("kronfluence_ekfac", "kronfluence")]
)
def test_packages_are_judged_by_the_same_retrainings(tmp_path: Path, package: str, module: str) -> None:
    few = ["drop=[0.5]", "labels=1", "dampings=[1.0,30.0]", "trak_k=128"]
    status, _, err = run(tmp_path, *SMALL, *few, f"methods=[{package}]")
    if importlib.util.find_spec(module) is None:
        assert status == 2
        assert "pip install" in err
        pytest.skip(f"{module} is not installed")
    assert status == 0, err
    (folder,) = (tmp_path / "outputs" / "attribution").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (
        f"{package}: LDS" in (folder / "run.log").read_text()
    )  # packages that quiet the root logger quiet themselves only
    assert metrics[f"result/lds_{package}_drop0.5"] > 0.8  # ours on this run: .94 (trak) and .98 (none)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["methods=[dropuot:4]"], "dropout:k"),
        (["methods=[trak:2:alpha]"], "trak:models"),
        (["methods=[exact:path]"], "none:path"),
        (["methods=[none:path]", "none_primal=100"], "none_primal=100"),
        (["methods=[trak:1]", "damping=run"], "damping=null"),
        (["methods=[dropout:0]"], "dropout:k"),
        (["methods=[dropout:10000000]"], "not 10000000"),
        (["methods=[]"], "methods"),
        (["methods=[missing.npy]"], "missing.npy"),
        (["retrainings=1"], "retrainings"),
        (["drop=[0.0001]"], "drop=[0.5]"),
        (["damping=rnu", "methods=[dropout:64]"], "not 'rnu'"),
        (["drop=[]", "methods=[dropout:64]"], "drop or damping"),
        (["drop=[]", "methods=[none:alpha]", "damping=1"], "drop=[0.5]"),
        (["checkpoints=0", "methods=[dropout:64:path]"], "checkpoints"),
        (["replay.check=fd", "methods=[exact]"], "replay.check"),
        (["curvature=hessian", "methods=[dropout:64]"], "gauss_newton"),
        (["damping=-1", "methods=[dropout:64]"], "damping"),
        (["race.methods=[none]", "methods=[gradient_dot]"], "dropout:k"),
        (["workers=0"], "workers=1"),
        (["leave_one_out=2"], "leave_one_out=50"),
        (["resume=nowhere"], "resume=nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    small = [*SMALL, "drop=[0.5]", "labels=1"]
    given = {o.partition("=")[0] for o in overrides}
    status, _, err = run(tmp_path, *[o for o in small if o.partition("=")[0] not in given], *overrides)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("metagradient attribution:")]
    assert len(lines) == 1, err
    assert says in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (np.full((150, 6), 1j), "holds complex128 values"),
        (np.ones((6, 150)), "holds [6, 150] = [n_train, n_query], but queries=6: set queries=150, or transpose it"),
        (np.full((150, 6), np.nan), "900 of the 900 scores are not finite"),
    ],
)
def test_scores_that_are_none_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: np.ndarray, says: str
) -> None:
    np.save(tmp_path / "theirs.npy", scores)
    monkeypatch.setattr("metagradient.experiments.attribution.make_task", lambda cfg: pytest.fail("trained"))
    status, _, err = run(tmp_path, *SMALL, "drop=[0.5]", f"methods=[{tmp_path / 'theirs.npy'}]")
    assert (status, says in err, "Traceback" in err) == (2, True, False)


def test_a_notebook_gets_what_the_command_line_gets(tmp_path: Path) -> None:
    """`attribution.method(name)` on the run of the same seed: the scores of the artifact, to the bit."""
    words = ["dropout:64:path", "exact", "none:alpha"]
    status, _, err = run(
        tmp_path, *SMALL, f"methods=[{','.join(words)}]", "damping=2.0", "drop=[0.5]", "none_primal=100", "seed=5"
    )
    assert status == 0, err
    (folder,) = (tmp_path / "outputs" / "attribution").glob("*/artifacts")

    digits = data.digits(train=150, validation=300, seed=5)

    def make(schedule: mg.Schedule) -> mg.Learner:
        return mg.Classifier(models.mlp((1, 8, 8), 10, hidden=(64,)), mg.SGD(momentum=0.9), schedule)

    routine = mg.Routine(make, lambda steps: mg.Constant(0.05), batch_size=100, epochs=3)
    batches = routine.batches(digits.train, 5)
    trained = at.TrainedRun.of(routine.learner(5, len(batches)), batches)
    queries = {name: field[:6] for name, field in digits.test.items()}
    files = ["scores", "scores_exact", "scores_none_alpha_0.5"]
    for word, file in zip(words, files, strict=True):
        method = at.method(word, damping=2.0, none_primal=100, seed=5)
        weight = {"weight": 0.5} if word.endswith("alpha") else {}
        assert torch.equal(method(trained, queries, **weight), load_file(folder / f"{file}.safetensors")["scores"]), (
            word
        )
