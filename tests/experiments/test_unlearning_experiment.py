"""`metagradient unlearning`, end to end on a small budget, and what it says to bad input."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from by_hand import task_of
from console import Done, run_in
from omegaconf import OmegaConf
from safetensors.torch import load_file

import metagradient as mg
from metagradient.reporting import Progress
from metagradient.studies.unlearning.judging import Judged
from metagradient.studies.unlearning.rows import to_delete
from metagradient.training.random import fold_in
from metagradient.unlearning import record

SMALL = [
    "data.train=120",
    "data.test=60",
    "learner.epochs=30",
    "sets=2",
    "klom.models=0",
    "logger.mode=disabled",
]


def run(directory: Path, *overrides: str) -> Done:
    return run_in(directory, "unlearning", *overrides)


def folder_of(directory: Path) -> Path:
    return max((directory / "outputs" / "unlearning").iterdir())


def metrics_of(directory: Path) -> dict[str, float]:
    return json.loads((folder_of(directory) / "metrics.json").read_text())


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    done = run(
        tmp_path, *SMALL, "klom.models=3", "klom.examples=20", "frontier.periods=[2,5,10]", "frontier.targets=[0.02]"
    )
    assert done.status == 0, done.err
    folder, metrics = folder_of(tmp_path), metrics_of(tmp_path)
    assert 0 < metrics["result/distance_to_retrained"] < metrics["result/distance_original_to_retrained"]
    assert metrics["result/error_ratio"] > 5
    assert metrics["result/gradient_saving"] > 2
    assert metrics["result/speedup"] > 0
    assert metrics["result/klom_method_asked"] >= 0
    assert {path.stem for path in (folder / "figures").iterdir()} == {"distances", "frontier", "path"}
    frontier = list(csv.DictReader((folder / "artifacts" / "frontier.csv").open()))
    assert [row["setting"] for row in frontier] == ["2", "5", "10", "0.02"]
    ratios = [float(row["error_ratio"]) for row in frontier]
    assert ratios[0] > ratios[1] > ratios[2]
    # an exact step in 5 after 11 of 30 leaves 14 gradients over the batch, and 16 + 14 over the row itself
    assert float(frontier[1]["saved"]) == pytest.approx(30 * 119 / (14 * 119 + 30))
    rows = list(csv.DictReader((folder / "artifacts" / "requests.csv").open()))
    assert len(rows) == 2
    assert metrics["result/kept_accuracy_retrained"] > metrics["result/test_accuracy_retrained"] > 0.5
    assert {"asked_accuracy_retrained", "kept_accuracy_retrained", "test_accuracy_retrained"} < rows[0].keys()
    assert len((folder / "artifacts" / "rows_1.csv").read_text().splitlines()) == 1 + 1  # 1 % of 120
    model = load_file(folder / "artifacts" / "model.safetensors")
    assert sum(x.numel() for x in model.values()) == 650

    # the distance that is told is that of the file's model to one trained on the other rows alone
    cfg, splits, routine = task_of(folder)
    (asked,) = (int(row["index"]) for row in csv.DictReader((folder / "artifacts" / "rows_0.csv").open()))
    others = {name: torch.cat([field[:asked], field[asked + 1 :]]) for name, field in splits.train.items()}
    learner = routine.learner(fold_in(cfg.seed, 1), 30)
    retrained = mg.train(learner, mg.Batches(others, mg.full_batch_plan(119, 30)))
    unlearned = torch.cat([model[name].flatten() for name, _ in learner.named_parameters()])
    distance = float((unlearned - retrained.params).norm())
    assert float(rows[0]["distance_to_retrained"]) == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize(
    "method", ["retrain", "newton", "first_order", "finetune", "gradient_ascent", "neggrad_plus", "deltagrad_guarded"]
)
def test_every_method_answers(tmp_path: Path, method: str) -> None:
    done = run(tmp_path, *SMALL, f"method={method}")
    assert done.status == 0, done.err
    if method == "retrain":
        metrics = metrics_of(tmp_path)
        assert metrics["result/distance_to_retrained"] == 0
        for part in ("asked", "kept", "test"):
            assert metrics[f"result/{part}_accuracy_retrained"] == metrics[f"result/{part}_accuracy"]


def test_on_disk_means_that_no_history_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metagradient.replay.storage import MemoryStorage

    def save(*args: object) -> None:
        raise AssertionError("kept in memory")

    monkeypatch.setattr(MemoryStorage, "save", save)
    done = run(tmp_path, *SMALL, "history.storage=disk", "klom.models=2", "klom.examples=20")
    assert done.status == 0, done.err
    assert (folder_of(tmp_path) / "figures" / "path.png").exists()


def rows_of(place: Path, request: int) -> list[int]:
    with (folder_of(place) / "artifacts" / f"rows_{request}.csv").open(newline="") as file:
        return [int(row["index"]) for row in csv.DictReader(file)]


def test_rows_are_added(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, "add.fraction=0.05", "method.period=1")
    assert done.status == 0, done.err
    metrics = metrics_of(tmp_path)
    assert metrics["result/distance_to_retrained"] == 0
    assert metrics["result/distance_original_to_retrained"] > 0
    assert len({*rows_of(tmp_path, 0), *rows_of(tmp_path, 1)}) == 12


@pytest.mark.parametrize("rule", ["class", "highest_loss", "highest_influence", "file"])
def test_deletion_sets_follow_their_rule(tmp_path: Path, rule: str) -> None:
    (tmp_path / "rows.txt").write_text("3\n14\n15\n")
    extra = {"class": ["delete.label=3", "delete.fraction=1"], "file": ["delete.file=rows.txt"]}.get(rule, [])
    done = run(tmp_path, *SMALL, f"delete.rows={rule}", "delete.fraction=0.05", *extra)
    assert done.status == 0, done.err
    rows = torch.tensor(rows_of(tmp_path, 0))
    if rule == "file":
        assert rows.tolist() == [3, 14, 15]
    elif rule == "class":
        from metagradient.data import digits

        assert torch.equal(rows, (digits(train=120, validation=0, test=60).train["y"] == 3).nonzero().flatten())
    else:
        assert len(rows) == 6


@pytest.mark.parametrize("rule", ["highest_loss", "highest_influence"])
def test_targeted_rows_are_those_that_a_look_at_every_row_finds(rule: str) -> None:
    """Losses by torch's own cross entropy; influences by training again with each row's weight moved either way."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(44, 3, generator=rng, dtype=torch.float64)
    y = (x + torch.randn(44, 3, generator=rng, dtype=torch.float64)).argmax(1)
    train, test = {"x": x[:24], "y": y[:24]}, {"x": x[24:], "y": y[24:]}
    torch.manual_seed(0)
    learner = mg.Classifier(torch.nn.Linear(3, 3).double(), mg.SGD(), 0.5)
    batches = mg.Batches(train, mg.full_batch_plan(24, 20))
    run = record(learner, batches)
    if rule == "highest_loss":
        weight, bias = learner.layout.views(run.final.params)
        found = torch.nn.functional.cross_entropy(train["x"] @ weight.T + bias, train["y"], reduction="none")
    else:

        def after(weights: torch.Tensor) -> float:
            state = mg.train(learner, batches, [mg.DataWeights(weights)])
            with torch.no_grad(), learner.evaluating(state):
                return float(mg.mean_loss(test)(learner))

        ones, h = torch.ones(24, dtype=torch.float64), 1e-4
        moved = torch.eye(24, dtype=torch.float64) * h
        found = torch.tensor([after(ones + row) - after(ones - row) for row in moved]).abs()
    cfg = OmegaConf.create({"delete": {"rows": rule, "fraction": None, "count": 5}, "sets": 1, "seed": 0})
    splits = SimpleNamespace(train=train, test=test)
    with Progress() as progress:
        (rows,) = to_delete(cfg, run, splits, progress)  # type: ignore[arg-type]
    assert rows.tolist() == sorted(found.argsort(descending=True)[:5].tolist())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["delete.fraction=1"], "leaves nothing to train on"),
        (["delete.fraction=1.5"], "delete.fraction"),
        (["delete.count=121"], "delete.fraction"),
        (["delete.rows=worst"], "highest_loss"),
        (["delete.rows=class"], "delete.label"),
        (["delete.rows=file"], "delete.file"),
        (["delete.rows=file", "delete.file=nowhere.txt"], "nowhere.txt"),
        (["delete.rows=file", "delete.file=twice.txt"], "row 4 stands 2 times"),
        (["delete.rows=file", "delete.file=outside.txt"], "row 120 is not one of the 120"),
        (["delete.rows=file", "delete.file=words.txt"], "'four'"),
        (["add.fraction=0.6"], "sets=1"),
        (["method.period=0"], "method.period=5"),
        (["history.dtype=float16"], "history.dtype"),
        (["sets=0"], "sets"),
        (["stream.requests=200", "delete.count=1"], "delete.count"),
        (["stream.requests=2", "delete.fraction=0"], "delete.count=1"),
        (["stream.requests=2", "method=newton"], "method=deltagrad"),
        (["delete.fraction=0"], "delete.fraction"),
        (["method=newton", "frontier.periods=[2]"], "method=deltagrad"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    for name, text in {"twice": "4 4", "outside": "120", "words": "four"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    done = run(tmp_path, *SMALL, *overrides)
    assert done.status != 0
    lines = [line for line in done.err.splitlines() if line.startswith("metagradient unlearning:")]
    assert len(lines) == 1, done.err
    assert says in lines[0]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["output_noise=-1"], "output_noise=0"),
        (["output_noise=.nan"], "output_noise=0"),
        (["history.storage=tape"], "set history.storage=memory"),
        (["stream.requests=2", "delete.rows=highest_loss"], "set delete.rows=random"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_met_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], says: str
) -> None:

    def recorded(*args: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("metagradient.experiments.unlearning.recorded", recorded)
    done = run(tmp_path, *SMALL, *overrides)
    assert done.status == 2, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("metagradient unlearning:")]
    assert len(lines) == 1, done.err
    assert says in lines[0]


def test_a_stream_hands_out_its_model_with_the_noise_that_was_asked_for(tmp_path: Path) -> None:
    asked = [*SMALL, "delete.count=2", "stream.requests=2", "stream.judge_every=1", "run_folder=kept"]
    models, errors = [], []
    for sigma in (0.0, 0.1):
        assert run(tmp_path, *asked, f"output_noise={sigma}").status == 0
        models.append(load_file(folder_of(tmp_path) / "artifacts" / "model.safetensors"))
        errors.append(metrics_of(tmp_path)["result/distance_to_retrained"])
    noise = torch.cat([(models[1][name] - models[0][name]).flatten() for name in models[0]])
    assert abs(float(noise.std()) - 0.1) < 0.01
    assert errors[1] == pytest.approx(float(noise.norm()), rel=0.05)
    assert errors[0] < 0.1 * errors[1]


def test_a_stream_is_served_and_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*SMALL, "delete.count=2", "add.count=1", "stream.requests=6", "stream.judge_every=2"]
    assert run(tmp_path, *asked, "run_folder=whole").status == 0
    whole = load_file(folder_of(tmp_path) / "artifacts" / "model.safetensors")
    metrics = metrics_of(tmp_path)
    assert metrics["result/requests"] == 6
    assert metrics["result/rows"] == 120 - 3 * 2
    assert metrics["result/error_ratio"] > 5

    from metagradient.unlearning import stored

    saves, save = 0, stored.save

    def dying(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal saves
        saves += 1
        if saves == 4:  # the run itself is the first
            raise KeyboardInterrupt
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "save", dying)
        assert run(tmp_path, *asked, "run_folder=cut").status == 130
    assert run(tmp_path, *asked, "run_folder=cut").status == 0
    rest = load_file(folder_of(tmp_path) / "artifacts" / "model.safetensors")
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert len((folder_of(tmp_path) / "artifacts" / "stream.csv").read_text().splitlines()) == 1 + 3  # after 2, 4, 6


@pytest.mark.parametrize("batch_size", [None, 32])
def test_retraining_all_seeds_at_once_is_retraining_each(batch_size: int | None) -> None:
    import metagradient as mg
    from metagradient.data import digits
    from metagradient.reporting import Progress
    from metagradient.studies.unlearning import klom

    splits = digits(train=100, validation=0, test=50)
    routine = mg.Routine(
        lambda schedule: mg.Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), mg.SGD(weight_decay=0.01), schedule),
        batch_size=batch_size, epochs=5,
    )  # fmt: skip
    members, seeds = torch.arange(100) % 7 > 0, [3, 4, 5]
    _, states = klom.retrained(routine, splits, members, seeds, Progress())
    for seed, state in zip(seeds, states, strict=True):
        batches = routine.batches(splits.train, seed)
        alone = record(routine.learner(seed, len(batches)), batches, members).final
        torch.testing.assert_close(state.params, alone.params, rtol=1e-4, atol=1e-6)
    assert (states[0].params - states[1].params).norm() > 0.1


def test_the_gain_of_a_frontier_is_read_at_equal_savings() -> None:
    from metagradient.studies.unlearning.frontier import gain

    fixed = [(x, 800 / x**2) for x in (2.0, 4.0, 8.0)]
    assert gain([(3.0, 3 * 800 / 9), (6.0, 800 / 36 / 1.5), (20.0, 1e9)], fixed) == pytest.approx((3 / 1.5) ** 0.5)
    assert gain([(20.0, 1.0)], fixed) is None


TIMES = ("cost/seconds", "cost/peak_memory_mib", "result/speedup", "meta/speedup", "result/retrain_seconds",
         "meta/retrain_seconds", "result/predicted_saving", "result/retrain_instead", "answer")  # fmt: skip


def kept_of(directory: Path) -> tuple[dict[str, float], dict[str, torch.Tensor], list[str]]:
    """What must be the same after an interruption: numbers but times, the model, the steps of the curves."""
    metrics = {key: value for key, value in metrics_of(directory).items() if key not in TIMES}
    folder = folder_of(directory)
    steps = [line.partition(",")[0] for line in (folder / "curves.csv").read_text().splitlines()]
    return metrics, load_file(folder / "artifacts" / "model.safetensors"), steps


@pytest.mark.slow
@pytest.mark.parametrize("served", ["sets", "stream"])
def test_resume_goes_on_after_what_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str) -> None:

    extra = ["sets=4"] if served == "sets" else ["delete.count=2", "stream.requests=6", "stream.judge_every=2"]
    for place in ("whole", "cut"):
        (tmp_path / place).mkdir()
    assert run(tmp_path / "whole", *SMALL, *extra).status == 0
    kept, add = [], Judged.add

    def dying(self, row):  # type: ignore[no-untyped-def]
        if len(kept) == 2:
            raise KeyboardInterrupt
        add(self, row)
        kept.append(row)

    with monkeypatch.context() as patch:
        patch.setattr(Judged, "add", dying)
        assert run(tmp_path / "cut", *SMALL, *extra).status == 130
    kept.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Judged, "add", lambda self, row: (add(self, row), kept.append(row)))
        done = run(tmp_path / "cut", *SMALL, *extra, "resume=true")
    assert done.status == 0, done.err
    assert len(kept) == (2 if served == "sets" else 1)  # the others were judged before the interruption
    assert len(list((tmp_path / "cut" / "outputs" / "unlearning").iterdir())) == 1
    (metrics, model, steps), (metrics_whole, model_whole, steps_whole) = (
        kept_of(tmp_path / place) for place in ("cut", "whole")
    )
    assert metrics == metrics_whole
    assert steps == steps_whole
    assert model.keys() == model_whole.keys()
    assert all(torch.equal(model[name], model_whole[name]) for name in model)


def test_a_stored_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, "run_folder=kept").status == 0
    files = {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    done = run(tmp_path, *SMALL, "run_folder=kept", "learner.learning_rate=0.05")
    assert done.status == 2
    assert "made with other settings (learning rates 0.1" in done.err
    assert files == {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    assert run(tmp_path, *SMALL, "run_folder=kept", "method=newton").status == 0


@pytest.mark.slow
def test_a_sweep_ends_in_a_comparison(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", *SMALL, "method=deltagrad,gradient_ascent", "seed=0,1", "hydra.sweep.dir=sweep")
    assert done.status == 0, done.err
    rows = list(csv.DictReader((tmp_path / "sweep" / "comparison.csv").open()))
    assert [(row["run"], row["seeds"]) for row in rows] == [("deltagrad", "2"), ("gradient_ascent", "2")]
    assert float(rows[0]["error_ratio"]) > float(rows[1]["error_ratio"])
    assert (tmp_path / "sweep" / "comparison.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("served", "file", "says"),
    [
        ("sets", "judged.json", "judged.json is damaged (its checksum is wrong): everything in it is judged again"),
        ("sets", "artifacts/model.safetensors", ""),  # which is written again in any case
        ("stream", "stream/judged.json", "judged.json lacks judgements; the stream is served again"),
        ("stream", "stream/run.json", "run.json is damaged"),
    ],
)
def test_what_was_damaged_meanwhile_is_named_and_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str, file: str, says: str
) -> None:
    extra = ["sets=3"] if served == "sets" else ["delete.count=2", "stream.requests=4", "stream.judge_every=1"]
    for place in ("whole", "cut"):
        (tmp_path / place).mkdir()
    assert run(tmp_path / "whole", *SMALL, *extra).status == 0
    add = Judged.add

    def dying(self, row):  # type: ignore[no-untyped-def]
        if len(self.rows) == 2:
            raise KeyboardInterrupt
        add(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Judged, "add", dying)
        assert run(tmp_path / "cut", *SMALL, *extra).status == 130
    (directory,) = (tmp_path / "cut" / "outputs" / "unlearning").iterdir()
    content = bytearray((directory / file).read_bytes())
    content[-2 if file.endswith("safetensors") else len(content) * 2 // 3] ^= 1
    (directory / file).write_bytes(content)
    done = run(tmp_path / "cut", *SMALL, *extra, "resume=true")
    assert done.status == 0, done.err
    assert says in (directory / "run.log").read_text()
    (metrics, model, steps), (metrics_whole, model_whole, steps_whole) = (
        kept_of(tmp_path / place) for place in ("cut", "whole")
    )
    assert (metrics, steps) == (metrics_whole, steps_whole)
    assert all(torch.equal(model[name], model_whole[name]) for name in model_whole)
