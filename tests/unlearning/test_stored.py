"""A stored run comes back as it was, or not at all; a killed stream ends where an unbroken one does."""

from pathlib import Path

import pytest
import torch
from unlearning_toys import PLANS, N, add, delete, examples, learner, recorded

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay import DiskStorage
from metagradient.unlearning import DeltaGrad, Newton, RecordedRun, Retrain, load, save, stream
from metagradient.unlearning.methods import Method


def _same(a: RecordedRun, b: RecordedRun) -> bool:
    steps = all(
        torch.equal(x, y) for pa, pb in zip(a.history, b.history, strict=True) for x, y in zip(pa, pb, strict=True)
    )
    ends = torch.equal(a.final.params, b.final.params) and torch.equal(a.initial.params, b.initial.params)
    return steps and ends and torch.equal(a.present, b.present)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("disk", [False, True])
def test_a_stored_run_comes_back(tmp_path: Path, disk: bool) -> None:
    run = recorded("batches", present=range(2, N), optimizer=mg.SGD(momentum=0.9), schedule=0.05)
    save(run, tmp_path / "run", {"told": 7}, original=run.final.params)
    fresh = learner(optimizer=mg.SGD(momentum=0.9), schedule=0.05)
    storage = DiskStorage(tmp_path / "scratch") if disk else None
    back, notes, tensors = load(tmp_path / "run", fresh, mg.Batches(examples(), PLANS["batches"]), storage)
    assert _same(back, run)
    assert notes == {"told": 7}
    assert torch.equal(tensors["original"], run.final.params)
    assert torch.equal(DeltaGrad()(back, delete(3)).state.params, DeltaGrad()(run, delete(3)).state.params)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimizer": mg.SGD(weight_decay=0.02)}, "weight_decay=0.01.* there, .*0.02"),
        ({"schedule": 0.3}, "learning rates 0.2 .. 0.2"),
        ({"hidden": 4}, "model"),
        ({"plan": "full"}, "order of batches"),
        ({"data": 1}, "data x"),
        ({"init": 5}, "first parameters"),
    ],
)
def test_another_recipe_is_refused_and_the_run_untouched(tmp_path: Path, change: dict, says: str) -> None:
    save(recorded("batches"), tmp_path)
    before = _files(tmp_path)
    settings = {k: v for k, v in change.items() if k in ("optimizer", "schedule", "hidden")}
    fresh = learner(**settings)
    if "init" in change:
        torch.nn.init.constant_(fresh.model[0].bias, 5.0)
    batches = mg.Batches(examples(seed=change.get("data", 0)), PLANS[change.get("plan", "batches")])
    with pytest.raises(UserError, match=says):
        load(tmp_path, fresh, batches)
    assert _files(tmp_path) == before


def test_a_damaged_file_is_seen(tmp_path: Path) -> None:
    save(recorded("batches"), tmp_path)
    file = next(tmp_path.glob("generation-*/state-*"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path, learner(), mg.Batches(examples(), PLANS["batches"]))


@pytest.mark.parametrize("file", ["run.json", "ends.safetensors"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "a folder", "a link"])
def test_every_other_file_is_seen_as_well(tmp_path: Path, file: str, harm: str) -> None:
    save(recorded("batches"), tmp_path, {"done": 3, "seconds": 1.5})
    (path,) = tmp_path.rglob(file)
    data = bytearray(path.read_bytes())
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm == "a link":
        path.symlink_to("nowhere")
    else:
        data[-9] ^= 1
        path.write_bytes({"flipped": data, "cut": data[:-20], "empty": b""}[harm])
    with pytest.raises(UserError, match="record it anew"):
        load(tmp_path, learner(), mg.Batches(examples(), PLANS["batches"]))


class _Killed(Exception):
    pass


REQUESTS = [delete(3), delete(4, 5), add(3), delete(17), delete(18)]


@pytest.mark.parametrize("method", [DeltaGrad(5, 8), Retrain()])
@pytest.mark.parametrize("where", ["in the request", "in the saving", "between"])
def test_a_killed_stream_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, where: str
) -> None:
    *_, whole = stream(method, recorded("batches"), REQUESTS, tmp_path / "whole")
    broken, calls = stream(method, recorded("batches"), REQUESTS, tmp_path / "run"), 0
    answer = type(method).__call__

    def dying(*args, **settings):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 3:
            raise _Killed
        return answer(*args, **settings)

    if where == "in the saving":
        next(broken), next(broken)
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(_Killed()))
            with pytest.raises(_Killed):
                next(broken)
    elif where == "between":
        assert next(broken).done == 1
        assert next(broken).done == 2
    else:
        with monkeypatch.context() as patch:
            patch.setattr(type(method), "__call__", dying)
            with pytest.raises(_Killed):
                list(broken)
    rest = list(stream(method, recorded("batches"), REQUESTS, tmp_path / "run"))
    assert [served.done for served in rest] == [2, 3, 4, 5]  # what was kept comes first
    assert _same(rest[-1].run, whole.run)
    assert rest[-1].gradients == whole.gradients
    assert torch.equal(rest[-1].original.params, recorded("batches").final.params)


def test_a_stream_ends_near_retraining(tmp_path: Path) -> None:
    start = recorded("full")
    *_, served = stream(DeltaGrad(5, 8), start, REQUESTS, tmp_path)
    truth = mg.train(start.learner, start.batches_of(served.run.present), state=start.initial).params
    assert served.run.present.logical_not().nonzero().flatten().tolist() == [4, 5, 17, 18]
    assert (served.run.final.params - truth).norm() < 0.2 * (start.final.params - truth).norm()


def test_another_stream_is_refused(tmp_path: Path) -> None:
    list(stream(DeltaGrad(5, 8), recorded("batches"), REQUESTS[:2], tmp_path))
    before = _files(tmp_path)
    with pytest.raises(UserError, match="another stream"):
        list(stream(DeltaGrad(5, 8), recorded("batches"), [delete(9)], tmp_path))
    with pytest.raises(UserError, match="another method"):
        list(stream(Retrain(), recorded("batches"), REQUESTS[:2], tmp_path))
    assert _files(tmp_path) == before


@pytest.mark.parametrize(
    ("requests", "method", "says"),
    [([delete(3), delete(3)], DeltaGrad(), "row 3"), ([delete(1)], Newton(), "streams need")],
)
def test_a_bad_stream_is_refused_before_it_starts(tmp_path: Path, requests, method, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=says):
        list(stream(method, recorded("batches"), requests, tmp_path))
    assert not _files(tmp_path)
