"""Choices of pairs: each filter keeps what it says, and influence is the slope that it claims to be."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.cli.command import main
from metagradient.data import drawn_digits
from metagradient.errors import UserError
from metagradient.evaluation import embeddings
from metagradient.models import BagOfWords, TwoTower
from metagradient.studies.selection.filters import PoolModel, best_filter, influence
from metagradient.studies.selection.pair_looking import by_source

SPLITS = drawn_digits(train=120, validation=24, test=24)
N, SIZE = 120, 30


def double(table: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in table.items()}


def learner(optimizer: mg.Optimizer) -> mg.ContrastiveLearner:
    torch.manual_seed(0)
    image = nn.Sequential(nn.Flatten(), nn.Linear(128, 8))
    return mg.ContrastiveLearner(TwoTower(image, BagOfWords(SPLITS.vocab, 8, 4, 6)).double(), optimizer, 0.01)


def pool_model(optimizer: mg.Optimizer) -> PoolModel:
    ours, pool = learner(optimizer), double(SPLITS.train)
    batches = mg.Batches(pool, mg.epoch_plan(N, SIZE, 3, seed=0))
    state = mg.train(ours, batches)
    return PoolModel(ours, state, batches, *embeddings(ours, state, pool)[:2], 1.0)


def search(model: PoolModel, found: Any, **settings: Any) -> Any:
    """What the filters read of a search, whose models are worth what `found` says of the rows that they were trained on."""
    defaults = {"shares": [0.5], "caption_words": [], "caption_known": [], "dropped_sources": 0}
    seen: list[int] = []

    def accuracies(examples: dict[str, Tensor], weights: None, tests: Any) -> dict[str, float]:
        seen.append(len(examples["x"]))
        return {"": found(examples)}

    tuner = SimpleNamespace(
        runs=0.0,
        accuracies=accuracies,
        seeds=[0],
        train=lambda examples, seed: (examples, None),
        measure=lambda examples, state, validation: found(examples),
    )
    progress = SimpleNamespace(callback=lambda *names: lambda *told: None)
    return SimpleNamespace(
        cfg=SimpleNamespace(pairs=SimpleNamespace(**defaults | settings)), tuner=tuner, progress=progress
    )


@pytest.mark.parametrize("optimizer", [mg.SGD(0.9), mg.Adam(eps_root=1e-6)], ids=str)
def test_influence_is_what_a_small_step_on_a_pairs_loss_takes_from_the_steering_loss(optimizer: mg.Optimizer) -> None:
    model, steer = pool_model(optimizer), double(SPLITS.validation)
    scores = influence(model, double(SPLITS.train), steer, seed=3)
    chunks = mg.CandidateWeights(torch.zeros(N), step=0, candidates=double(SPLITS.train), chunk=SIZE, seed=3)
    chunk = next(iter(chunks.chunks(model.state.params)))
    params, phi = model.state.params, mg.mean_loss(steer)
    scale = torch.ones_like(params)
    if isinstance(optimizer, mg.Adam):
        scale = 1 / ((model.state.slots[1] + 1e-6).sqrt() + optimizer.eps)
    for place in (0, 7):
        leaf = params.clone().requires_grad_()
        with model.learner.running(leaf, model.state.buffers, 0, 0):
            (gradient,) = torch.autograd.grad(model.learner.losses(chunk)[place], leaf)

        def after(h: float, step: Tensor = scale * gradient) -> float:
            state = mg.TrainState.of([params - h * step, *model.state.slots, model.state.buffers])
            with torch.no_grad(), model.learner.evaluating(state):
                return float(phi(model.learner))

        h = 1e-6
        slope = (after(-h) - after(h)) / (2 * h)
        assert float(scores[chunk.index[place]]) == pytest.approx(slope, rel=1e-5)


def test_filters_keep_what_they_say() -> None:
    model = pool_model(mg.SGD())
    _, rows = best_filter(
        search(model, lambda examples: 0.0, caption_words=[1], caption_known=[1.0]), SPLITS, model
    )  # of one word are a few junk captions, less than a batch
    assert [row[0] for row in rows] == [
        "CLIP score of the pool's model, best 50%",
        "images nearest to the target's, 50%",
        "captions with 100% of their words in the target's",
    ]
    known = {word for caption in SPLITS.captions["validation"] for word in caption.split()}
    share = sum(set(caption.split()) <= known for caption in SPLITS.captions["train"]) / N
    assert [row[2] for row in rows] == pytest.approx([0.5, 0.5, share])
    own = (model.images * model.texts).sum(1)
    best, _ = best_filter(search(model, lambda examples: -float(len(examples["x"]))), SPLITS, model)
    assert best.kept is not None
    assert float(own[best.kept].min()) >= float(own[~best.kept].max())


def test_sources_are_dropped_by_what_their_absence_does() -> None:
    """The two bad ones, where models are worth the share of right captions; the worth of all sources is asked for once each."""
    right = torch.tensor([a == b for a, b in zip(SPLITS.captions["train"], SPLITS.concepts["train"], strict=True)])
    pool = SPLITS.train["x"].flatten(1).sum(1)

    def worth(examples: dict[str, Tensor]) -> float:
        return float(right[torch.isin(pool, examples["x"].flatten(1).sum(1))].double().mean())

    model = pool_model(mg.SGD())
    best, rows = best_filter(search(model, worth, dropped_sources=3), SPLITS, model)
    assert sorted(best.label.removeprefix("best filter: without ").split(", "))[:2] == ["mislabelled", "unnamed"]
    assert best.kept is not None
    assert bool(right[best.kept].all())
    assert len(rows) == 5


def test_no_filter_that_leaves_a_batch_is_told() -> None:
    model = pool_model(mg.SGD())
    with pytest.raises(UserError, match=r"set pairs\.shares=\[0\.5\]"):
        best_filter(search(model, lambda examples: 0.0, shares=[0.01]), SPLITS, model)


def test_the_share_kept_of_each_source() -> None:
    kept = torch.tensor([source == "plain" for source in SPLITS.sources["train"]])
    rows = by_source(SPLITS, SimpleNamespace(kept=kept, weights=3.0 * kept))  # type: ignore[arg-type]
    assert rows[0] == ["plain", 20, 1.0, 3.0]
    assert {tuple(row[1:]) for row in rows[1:]} == {(20, 0.0, 0.0)}


QUICK = (
    "experiment=icons_clip_tiny", "debug=fast", "logger.mode=disabled", "learner.batch_size=32", "pairs.among=10",
    "pairs.shares=[0.5]", "pairs.dropped_sources=0",
)  # fmt: skip


def test_a_run_leaves_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["selection", *QUICK])
    (directory,) = (tmp_path / "outputs" / "selection").iterdir()
    metrics = json.loads((directory / "metrics.json").read_text())
    for name in ("", "_all_data", "_random", "_best_filter", "_influence", "_oracle"):
        assert 0 <= metrics[f"result/test_accuracy{name}"] <= 1
        assert f"result/test_accuracy{name}_sd" in metrics
    assert {path.stem for path in (directory / "figures").iterdir()} == {
        "weights", "metasteps", "most_wanted", "least_wanted",
    }  # fmt: skip
    for name in ("selection.csv", "kept_by_source.csv", "filters_on_validation.csv", "report.html"):
        assert (directory / "artifacts" / name).stat().st_size > 0
    trained = mg.load(directory).learner()
    assert isinstance(trained, mg.ContrastiveLearner)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["selection", *QUICK, "learner.loss=huber"], "loss must be one of clip, siglip"),
        (["selection", *QUICK, "model.image=vgg"], "model.image must be one of resnet9, vit, mlp"),
        (["attribution", "data=drawn_digits", "debug=fast", "logger.mode=disabled"], "which only selection asks about"),
        (["unlearning", "data=drawn_digits", "debug=fast", "logger.mode=disabled"], "which only selection asks about"),
    ],
)
def test_what_cannot_be_is_one_line(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(overrides)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
