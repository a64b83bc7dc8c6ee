"""Compiled steps: the same gradients as plain ones, the same bits in every kind of run, and no silent difference."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any
from weakref import ref

import lightning
import pytest
import torch
from test_truth import HELD_OUT, KINDS, OPTIMIZERS, gpt, token_batches
from torch import Tensor, nn
from toys import CLASSES, INPUTS, N, assert_slope, batches, conv_net, examples, fit, mlp, relative, same_bits

import metagradient as mg
from metagradient.errors import UserError
from metagradient.models import lora
from metagradient.replay.trial import measure
from metagradient.training import compiled
from metagradient.training.run import run_mode

pytestmark = pytest.mark.skipif(not compiled.can_compile(), reason="no C++ compiler on this machine")

EXACT = 1e-9
VECTORS, IMAGES, HELD_OUT_IMAGES = examples(), examples(shape=(1, 4, 4)), examples(7, (1, 4, 4), seed=3)
EVEN = [[3, 1, 4, 0], [5, 9, 2, 6], [7, 8, 0, 1], [6, 2, 5, 9], [8, 4, 3, 7]]
"""Batches of one size: one graph of each kind."""
GRAPHS = {name: mg.Graphs() for name in ("mlp", "conv", "lm", "linear")}
"""The tests compile each network once."""


def classifier(compile_: bool = True, optimizer: str = "momentum", module: nn.Module | None = None) -> mg.Classifier:
    rules = OPTIMIZERS[optimizer]
    learner = mg.Classifier(module or mlp(), rules.ours, rules.rate, decay=rules.decay)
    learner.graphs = GRAPHS["mlp"] if compile_ else None
    return learner


# -- the same gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["tape", "sqrt"])
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("weights", "momentum"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("inputs", "momentum"), ("decay", "adam decay"))),
        ("log knots", "adamw masked"),
    ],
)
def test_a_compiled_replay_is_the_plain_replay(kind: str, optimizer: str, plan: str) -> None:
    """Short batches and an empty one among them; the plain replay is the naive unroll's (see `test_truth`)."""

    def replay(compile_: bool) -> Tensor:
        learner = classifier(compile_, optimizer)
        result = mg.metagradient(learner, batches(VECTORS), KINDS[kind].ours, mg.mean_loss(HELD_OUT), checkpoints=plan)
        return result[KINDS[kind].ours.name]

    assert relative(replay(True), replay(False)) < EXACT
    assert GRAPHS["mlp"]._graphs


def test_central_differences_of_compiled_trainings() -> None:
    learner, data, z = classifier(), batches(VECTORS, EVEN), [KINDS["weights"].ours]
    phi = mg.mean_loss(HELD_OUT)
    assert_slope(mg.metagradient(learner, data, z, phi)["weights"], learner, data, z, "weights", phi)


@pytest.mark.slow  # half a minute of cold compilation
def test_batch_norm_statistics_carry_gradient() -> None:
    """The objective reads running statistics, which the steps wrote."""
    data, z, phi = batches(IMAGES, EVEN), [KINDS["weights"].ours], mg.mean_loss(HELD_OUT_IMAGES)

    def learner(compile_: bool) -> mg.Classifier:
        made = classifier(compile_, module=conv_net())
        made.graphs = GRAPHS["conv"] if compile_ else None
        return made

    results = [mg.metagradient(learner(c), data, z, phi)["weights"] for c in (True, False)]
    assert relative(*results) < EXACT
    assert_slope(results[0], learner(False), data, z, "weights", phi)  # plain steps: no second graph to compile


@pytest.mark.slow  # half a minute of cold compilation
def test_language_model_with_frozen_weights() -> None:
    """Attention, tokens, and adapters on a frozen base; learners that differ in the base share the graphs."""
    z, phi = [KINDS["weights"].ours], mg.mean_loss(token_batches(5, seed=9))
    for shift in (0.0, 0.1):
        results = []
        for compile_ in (True, False):
            model = gpt()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(shift)
            model = lora(model, rank=2, alpha=4.0, targets=["qkv"]).double()
            learner = mg.LanguageModel(model, mg.SGD(momentum=0.9), 0.1)
            learner.graphs = GRAPHS["lm"] if compile_ else None
            results.append(mg.metagradient(learner, batches(token_batches(), EVEN), z, phi)["weights"])
        assert relative(*results) < EXACT
    assert len(GRAPHS["lm"]._graphs) == 1  # the whole run was taped


@pytest.mark.parametrize("net", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_objectives_at_once(net: str) -> None:
    """Pulled one after the other through one tape, which every pull must leave as it was."""
    examples_, held_out = (VECTORS, HELD_OUT) if net == "mlp" else (IMAGES, HELD_OUT_IMAGES)

    def each(learner: mg.Learner) -> Tensor:
        return learner.losses(mg.Batch(0, torch.arange(5), {k: v[:5] for k, v in held_out.items()}))

    def gradients(compile_: bool) -> Tensor:
        learner = classifier(compile_, module=mlp() if net == "mlp" else conv_net())
        learner.graphs = GRAPHS[net] if compile_ else None
        return mg.metagradient(learner, batches(examples_, EVEN), KINDS["weights"].ours, each)["weights"]

    assert gradients(True).shape == (5, N)
    assert relative(gradients(True), gradients(False)) < EXACT


# -- one trajectory -----------------------------------------------------------------------------------------------


def test_trainer_bare_loop_resumed_run_and_checkpoints_end_in_the_same_bits() -> None:
    data, z = batches(VECTORS), [mg.DataWeights(torch.ones(N, dtype=torch.float64))]
    whole = mg.train(classifier(), data, z)
    half = mg.train(classifier(), data, z, stop=5)
    assert same_bits(mg.train(classifier(), data, z, state=half, start=5), whole)
    learner = classifier()
    learner.metaparameters = z
    fit(learner, data, precision="64-true")
    assert learner.train_state is not None
    assert same_bits(learner.train_state, whole)
    callback = mg.Metagradient(z, mg.mean_loss(HELD_OUT), checkpoints="all")
    fit(classifier(), data, callback, precision="64-true")
    alone = mg.metagradient(classifier(), data, z, mg.mean_loss(HELD_OUT), checkpoints="all")
    assert torch.equal(callback.gradients["weights"], alone["weights"])


def test_the_tape_of_a_compiled_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the checks of the first calls save."""
    data, z = batches(VECTORS, EVEN), [KINDS["weights"].ours]

    def taped(compile_: bool) -> int:
        learner = classifier(compile_)
        with run_mode(learner, data):
            return measure(learner, data, mg.initial_state(learner), z, 0).taped_step

    taped(True)  # compiled now
    assert taped(False) / 2 < taped(True) < 2 * taped(False)
    with_checks = taped(True)
    monkeypatch.setattr(compiled, "_verify", lambda *_: None)
    assert taped(True) == with_checks


# -- who shares graphs --------------------------------------------------------------------------------------------


def test_a_routine_compiles_once() -> None:
    routine = mg.Routine(lambda schedule: mg.Classifier(mlp(), mg.SGD(), schedule, compiled=True), epochs=3)
    first, second = (routine.train(VECTORS, seed)[0] for seed in (0, 1))
    assert first.graphs is second.graphs
    assert len(first.graphs._graphs) == 1
    assert copy.deepcopy(first).graphs is first.graphs
    assert not pickle.loads(pickle.dumps(first.graphs))._graphs


def test_other_modules_are_compiled_anew() -> None:
    """Activations differ, shapes do not."""
    graphs = mg.Graphs()
    for activation in (nn.Tanh(), nn.Softplus()):
        module = mlp()
        module[1] = activation
        learner, plain = classifier(module=module), classifier(False, module=copy.deepcopy(module))
        learner.graphs = graphs
        data = batches(VECTORS, EVEN)
        assert relative(mg.train(learner, data).params, mg.train(plain, data).params) < EXACT
    assert len(graphs._graphs) == 2


def test_short_batches_are_computed_without_a_graph() -> None:
    """Whatever was compiled before: a resumed run must take the same steps compiled as the whole one."""
    graphs = mg.Graphs()
    for rows in ([[0, 1, 2], [3, 4]], [[0, 1], [2, 3], [4]]):
        learner = classifier()
        learner.graphs = graphs
        state = mg.train(learner, batches(VECTORS, rows))
        assert relative(state.params, mg.train(classifier(False), batches(VECTORS, rows)).params) < EXACT
    assert len(graphs._graphs) == 2


def test_a_graph_does_not_keep_the_learner_that_it_was_made_from() -> None:
    learner = mg.Classifier(mlp(), mg.SGD(), 0.3, compiled=True)
    graphs, gone = learner.graphs, ref(learner)
    mg.train(learner, batches(VECTORS, EVEN))
    del learner
    gc.collect()
    assert gone() is None
    other = mg.Classifier(mlp(), mg.SGD(), 0.3)
    other.graphs = graphs
    mg.train(other, batches(VECTORS, EVEN))
    assert graphs is not None
    assert len(graphs._graphs) == 1


# -- nothing silently frozen --------------------------------------------------------------------------------------


class Scaled(mg.Classifier):
    """Losses multiplied by what a function makes of the learner and the batch."""

    def __init__(self, factor: Callable[[mg.Learner, mg.Batch], float]) -> None:
        super().__init__(mlp(), mg.SGD(), 0.3, compiled=True)
        self.factor, self.calls, self.scale = factor, 0, 1.0

    def losses(self, batch: mg.Batch) -> Tensor:
        self.calls += 1
        return super().losses(batch) * self.factor(self, batch)


@pytest.mark.parametrize(
    ("learner", "why"),
    [
        (lambda: Scaled(lambda learner, batch: 1 + batch.t), "read the step"),
        # the first two calls, before the run, agree: what changes later is found by the graph's own checks
        (lambda: Scaled(lambda learner, batch: float(max(learner.calls, 2))), "another gradient than the plain one"),
        (lambda: Scaled(lambda learner, batch: float(batch.x.sum())), "could not be compiled"),
        (lambda: mg.Classifier(mlp(dropout=0.5), mg.SGD(), 0.3, compiled=True), "random numbers"),
        (
            lambda: mg.Classifier(nn.Sequential(mlp(), nn.AlphaDropout(0.5)), mg.SGD(), 0.3, compiled=True),
            "torch's global generator",
        ),
    ],
)
def test_what_a_graph_would_freeze_is_refused(learner: Callable[[], mg.Learner], why: str) -> None:
    with pytest.raises(UserError, match=why) as refusal:
        mg.train(learner(), batches(VECTORS, EVEN))
    assert "learner.compiled=false" in str(refusal.value)


def test_a_setting_changed_after_compiling() -> None:
    learner = Scaled(lambda learner, batch: learner.scale)  # type: ignore[attr-defined]
    mg.train(learner, batches(VECTORS, EVEN))
    learner.scale = 1.01
    with pytest.raises(UserError, match="changed since it was compiled"):
        mg.train(learner, batches(VECTORS, EVEN))


class SwapsAt(lightning.Callback):
    """Puts another activation in at a step."""

    def on_train_batch_start(self, trainer: lightning.Trainer, learner: Any, batch: mg.Batch, index: int) -> None:
        if index == 3:
            learner.model[1] = nn.Softplus()


def test_a_module_swapped_in_the_middle_of_a_run() -> None:
    with pytest.raises(UserError, match="changed since it was compiled"):
        fit(classifier(), batches(VECTORS, EVEN), SwapsAt(), precision="64-true")


class Counts(mg.Classifier):
    """An integer buffer that is another one after the calls of the probe."""

    def __init__(self) -> None:
        super().__init__(mlp(), mg.SGD(), 0.3, compiled=True)
        self.register_buffer("count", torch.tensor([0, 0]))
        self.calls = 0

    def losses(self, batch: mg.Batch) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            self.count = self.count + 1
        return super().losses(batch) + 0 * self.count.sum()


def test_an_integer_buffer_that_changes_is_refused() -> None:
    with pytest.raises(UserError, match="assign 'count'"):
        mg.train(Counts(), batches(VECTORS, EVEN))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_cancels_to_nothing_is_no_difference(dtype: torch.dtype) -> None:
    """Full-batch logistic regression at its optimum, where the gradient is the rounding of its terms."""
    data = mg.Batches(examples(60), mg.full_batch_plan(60, 1500)).to(dtype=dtype)
    learner = mg.Classifier(nn.Linear(INPUTS, CLASSES).to(dtype), mg.SGD(momentum=0.9), 1.0)
    end = mg.train(learner, data)
    learner.graphs = GRAPHS["linear"]
    again = mg.train(learner, data, state=end, stop=3)
    assert relative(again.params, end.params) < torch.finfo(dtype).eps ** 0.5


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def nothing(search: object) -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "cpp_compiler_search", nothing)
    assert not compiled.can_compile()


def test_a_loss_that_is_not_finite_is_named_as_ever() -> None:
    data = {**VECTORS, "x": VECTORS["x"].clone()}
    data["x"][9] = torch.nan
    with pytest.raises(mg.NonFiniteLoss, match="at step 1"):
        mg.train(classifier(), batches(data, EVEN))
