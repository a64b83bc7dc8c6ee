"""Flat vectors and the module they stand for."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.state import Layout

DATA = {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), "y": torch.arange(8) % 3}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def learner(model: nn.Module) -> mg.Classifier:
    return mg.Classifier(model, mg.SGD(momentum=0.9))


def batches(steps: int = 4) -> mg.Batches:
    return mg.Batches(DATA, mg.full_batch_plan(8, steps))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_the_vector_is_the_trainable_parameters_in_the_order_of_named_parameters() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    layout = Layout(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert layout.names == list(trainable)
    assert torch.equal(layout.params(), torch.cat([p.detach().flatten() for p in trainable.values()]))
    for view, p in zip(layout.views(layout.params()), trainable.values(), strict=True):
        assert torch.equal(view, p)
    assert layout.buffer_names == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_inside_bind_the_module_computes_with_the_vectors_and_afterwards_with_its_own() -> None:
    model = learner(net())
    layout, x = model.layout, DATA["x"]
    model.eval()
    before, own, at_first = snapshot(model), list(model.parameters()), model(x)
    params, buffers = layout.params() * 2, layout.buffers(like=layout.params()) + 1
    double = copy.deepcopy(model)
    with torch.no_grad():
        for p in double.parameters():
            p.mul_(2)
        for b in double.buffers():
            if b.is_floating_point():
                b.add_(1)
    with layout.bind(params, buffers):
        assert torch.equal(model(x), double(x))
    assert torch.equal(model(x), at_first)
    assert unchanged(model, before)
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
    with pytest.raises(ZeroDivisionError), layout.bind(params, buffers):
        raise ZeroDivisionError
    assert torch.equal(model(x), at_first)


def test_training_leaves_the_module_and_its_mode_as_they_were() -> None:
    model = learner(net())
    model.layout  # noqa: B018 (converts the batch norm)
    model.model[0].eval()
    before, modes = snapshot(model), [m.training for m in model.modules()]
    state = mg.train(model, batches())
    assert unchanged(model, before)
    assert [m.training for m in model.modules()] == modes
    assert not torch.equal(state.params, model.layout.params())
    model.adopt(state)
    assert torch.equal(state.params, model.layout.params())
    assert torch.equal(state.buffers, model.layout.buffers(like=state.params))
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


def test_a_failing_step_leaves_the_module_as_it_was() -> None:
    class Fails(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            if batch.t == 2:
                raise ZeroDivisionError
            return super().losses(batch)

    model = Fails(net())
    model.layout  # noqa: B018
    before = snapshot(model)
    model.eval()
    with pytest.raises(ZeroDivisionError):
        mg.train(model, batches())
    assert unchanged(model, before)
    assert not model.training


class Tied(nn.Module):
    """An auto-encoder's shape: one matrix there and back, held by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.tanh(self.there(x)) @ self.there.weight)


def test_tied_weights_are_one_stretch_of_the_vector_and_stay_tied() -> None:
    model = learner(Tied())
    assert model.layout.names == ["model.there.weight"]
    assert model.layout.params().numel() == 12
    state = mg.train(model, batches())
    model.adopt(state)
    assert model.model.there.weight is model.model.back.weight
    assert torch.equal(model.model.back.weight.flatten(), state.params)


class Stateful(mg.Classifier):
    """Keeps a moving average of its inputs; `where` says whether it is written into or assigned."""

    def __init__(self, where: str) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 3))
        self.where = where
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("average", torch.zeros(4))

    def losses(self, batch: mg.Batch) -> Tensor:
        if self.where == "in place":
            self.average.mul_(0.9).add_(batch.x.mean(0), alpha=0.1)
        else:
            self.average = 0.9 * self.average + 0.1 * batch.x.mean(0)
        return super().losses(batch.replace(x=batch.x * self.scale))


def test_a_buffer_that_is_assigned_is_state() -> None:
    state = mg.train(Stateful("assigned"), batches(3))
    mean, average = DATA["x"].mean(0), torch.zeros(4)
    for _ in range(3):
        average = 0.9 * average + 0.1 * mean
    torch.testing.assert_close(state.buffers, torch.cat([torch.ones(4), average]))


def test_a_buffer_that_is_written_into_is_state_too() -> None:
    in_place, assigned = (mg.train(Stateful(where), batches(3)) for where in ("in place", "assigned"))
    torch.testing.assert_close(in_place.buffers, assigned.buffers)
    torch.testing.assert_close(in_place.params, assigned.params)


def test_a_counter_is_state() -> None:
    class Counts(mg.Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3))
            self.register_buffer("steps", torch.tensor(5))

        def losses(self, batch: mg.Batch) -> Tensor:
            self.steps += 1
            return super().losses(batch) / self.steps

    learner = Counts()
    state = mg.train(learner, batches(3))
    assert state.buffers.tolist() == [8.0]
    assert learner.steps == 5
    assert learner.adopt(state).steps == 8


def test_an_integer_buffer_that_changes_is_refused_by_name() -> None:
    class Histogram(mg.Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3))
            self.register_buffer("seen", torch.zeros(3, dtype=torch.long))

        def losses(self, batch: mg.Batch) -> Tensor:
            self.seen += torch.bincount(batch.y, minlength=3)
            return super().losses(batch)

    with pytest.raises(UserError, match=r"^losses\(\) change 'seen'[^\n]*$"):
        mg.train(Histogram(), batches())


def test_a_parameter_kept_outside_its_module_is_refused_by_name() -> None:
    """The step cannot replace it there, so it would silently never train."""

    class Keeps(mg.Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3))
            self.kept = [self.model.weight]

        def losses(self, batch: mg.Batch) -> Tensor:
            return (batch.x @ self.kept[0].T + self.model.bias).square().sum(1)

    with pytest.raises(UserError, match=r"^losses\(\) computes with a reference to parameter 'model\.weight'[^\n]*$"):
        mg.train(Keeps(), batches())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


def test_a_function_without_a_second_derivative_is_refused() -> None:
    """torch would leave its second derivative out and say nothing."""

    class Cubed(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            return Cube.apply(super().losses(batch))  # type: ignore[no-untyped-call]

    with pytest.raises(UserError, match="Cube, whose backward is marked once_differentiable"):
        mg.train(Cubed(nn.Linear(4, 3)), batches())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_train(kind: Any) -> None:
    class Recurrent(mg.Learner):
        def __init__(self) -> None:
            super().__init__(mg.SGD(), 0.5)
            self.layer, self.head = kind(2, 3, batch_first=True), nn.Linear(3, 3)

        def losses(self, batch: mg.Batch) -> Tensor:
            last = self.layer(batch.x.view(-1, 2, 2))[0][:, -1]
            return nn.functional.cross_entropy(self.head(last), batch.y, reduction="none")

    model = Recurrent()
    moved = model.layout.views(mg.train(model, batches()).params - model.layout.params())
    assert all(bool((x != 0).any()) for x in moved)


def test_a_learner_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="every requires_grad is False"):
        mg.train(mg.Classifier(net().requires_grad_(False)), batches())


def test_state_is_tensors_and_back() -> None:
    state = mg.TrainState(torch.ones(3), (torch.zeros(3), torch.full((3,), 2.0)), torch.zeros(2))
    back = mg.TrainState.of(state.tensors())
    assert all(a is b for a, b in zip(state.tensors(), back.tensors(), strict=True))
    assert state.names() == ("params", "slot 0", "slot 1", "buffers")
    assert state.nbytes == 4 * (3 + 3 + 3 + 2)
    assert all(x.requires_grad and x.is_leaf for x in state.leaf().tensors())
