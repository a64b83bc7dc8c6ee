"""Other packages on the same model, where installed: what they make of it, judged by the same retrainings.

Each is called as its documentation does, with its own gradients, projections and solvers; dampings are, as for our own
methods, relative to the mean eigenvalue of the curvature that the package inverts.
"""

import copy
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metagradient.attribution.methods.run import MethodSettings, TrainedRun
from metagradient.errors import UserError
from metagradient.learners.classifier import Classifier
from metagradient.training.batches import Fields


@dataclass(frozen=True)
class PackageScorer:
    """A package as a scorer: `score(queries, damping)` gives [n, q], helpful positive, in units of its own."""

    n: int
    score: Callable[[Fields, float], Tensor]
    folder: tempfile.TemporaryDirectory[str] | None = None  # where the package keeps what it needs; lives as long
    passes: float = 2.0  # for the curvature, and for the examples' own gradients
    scale: float | None = None
    k: int | None = None  # dimensions of its projection

    def prepare(self) -> None:
        """Whatever the package keeps, it computes when it is made or called."""

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        with contained():
            found = torch.stack([self.score(queries, damping) for damping in dampings])
        yield torch.nan_to_num(found.detach().float(), nan=torch.inf)[:, start:]

    def at_once(self, queries: Fields) -> int:
        return len(next(iter(queries.values())))  # the package divides them as it likes

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        raise UserError(
            "other packages score query by query, not a whole set at once: leave them out, or average scores"
        )

    def self_influence(self, damping: float) -> Tensor:
        raise UserError("self-influence is not asked of other packages: leave them out")


def dattri_trak(run: TrainedRun, settings: MethodSettings) -> PackageScorer:
    """TRAK of dattri, one model, `trak_k` dimensions."""
    algorithm, (tasks, functions) = _need("dattri.algorithm"), (_need("dattri.task"), _need("dattri.func.projection"))
    model = _model(run)
    projector = {"proj_dim": settings.trak_k, "device": "cpu", "proj_max_batch_size": 32, "proj_seed": 0}
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def loss(params: Any, pair: Any) -> Tensor:
        image, label = pair
        logits = torch.func.functional_call(model, params, (image.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    def margin(params: Any, pair: Any) -> Tensor:
        return loss(params, pair).neg().exp().logit(eps=1e-6)

    def probability(params: Any, pair: Any) -> Tensor:
        return loss(params, pair).neg().exp()

    setup = tasks.AttributionTask(margin, model, [weights])
    train = _loader(run.train, settings.batch)
    # The mean eigenvalue of its kernel matrix, from one batch of its own projected gradients.
    gradients = setup.get_grad_loss_func(in_dims=(None, 0))(setup.get_param(ckpt_idx=0)[0], next(iter(train)))
    gradients = gradients / gradients.shape[1] ** 0.5
    projected = functions.random_project(gradients, len(gradients), **projector)(gradients, ensemble_id=0)
    mean = float(projected.square().sum()) / len(projected) * run.n / settings.trak_k

    def score(queries: Fields, damping: float) -> Tensor:
        method = algorithm.TRAKAttributor(setup, probability, projector_kwargs=projector, regularization=damping * mean)
        method.cache(train)
        return method.attribute(test_dataloader=_loader(queries, settings.batch))

    return PackageScorer(run.n, score, k=settings.trak_k)


def traker(run: TrainedRun, settings: MethodSettings) -> PackageScorer:
    """TRAK of its authors' package traker, one model, `trak_k` dimensions, single precision.

    On a CPU it projects in blocks of 100 dimensions and fails where there is one block only.
    """
    if settings.trak_k <= 100:
        raise UserError(f"traker needs more than 100 dimensions on a CPU: set trak_k=512, not {settings.trak_k}")
    package, model = _need("trak"), _model(run)
    folder = tempfile.TemporaryDirectory()
    weights = model.state_dict()

    def make() -> Any:
        return package.TRAKer(
            model, "image_classification", run.n, save_dir=folder.name, device="cpu", proj_dim=settings.trak_k,
            use_half_precision=False, logging_level=logging.ERROR,
        )  # fmt: skip

    first = make()
    first.load_checkpoint(weights, model_id=0)
    for batch in _loader(run.train, settings.batch):
        first.featurize(batch, num_samples=len(batch[1]))
    kept = torch.as_tensor(first.saver.current_store["grads"]).clone()
    calls = 0

    def score(queries: Fields, damping: float) -> Tensor:
        nonlocal calls
        calls, name = calls + 1, f"call{calls}"
        first.score_computer.lambda_reg = damping * float(kept.square().sum()) / settings.trak_k
        first.saver.model_ids[0]["is_finalized"] = 0
        first.finalize_features()
        first.start_scoring_checkpoint(name, weights, model_id=0, num_targets=len(queries["y"]))
        for batch in _loader(queries, settings.batch):
            first.score(batch, num_samples=len(batch[1]))
        return torch.as_tensor(first.finalize_scores(name)).clone()

    return PackageScorer(run.n, score, folder, k=settings.trak_k)


def kronfluence_ekfac(run: TrainedRun, settings: MethodSettings) -> PackageScorer:
    """EK-FAC influence of kronfluence: linear and convolution layers, Fisher with labels drawn from the model."""
    base, arguments = _need("kronfluence.task"), _need("kronfluence.arguments")
    package = _need("kronfluence.analyzer")

    class Classification(base.Task):  # type: ignore[name-defined]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits = model(batch[0])
            labels = logits.detach().softmax(1).multinomial(1).squeeze(1) if sample else batch[1]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    own, folder = Classification(), tempfile.TemporaryDirectory()
    model = package.prepare_model(_model(run), own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        analyzer = package.Analyzer(
            "package", model, own, cpu=True, output_dir=folder.name, disable_tqdm=True, log_level=logging.ERROR
        )
        train = TensorDataset(run.train["x"], run.train["y"])
        analyzer.fit_all_factors(
            "ekfac",
            train,
            per_device_batch_size=settings.batch,
            factor_args=arguments.FactorArguments(strategy="ekfac"),
        )
    factors = analyzer.load_lambda_matrices("ekfac")
    counts = factors["num_lambda_processed"]
    matrices = {name: matrix / counts[name] for name, matrix in factors["lambda_matrix"].items()}
    mean = float(sum(m.sum() for m in matrices.values()) / sum(m.numel() for m in matrices.values()))

    def score(queries: Fields, damping: float) -> Tensor:
        analyzer.compute_pairwise_scores(
            "scores", "ekfac", TensorDataset(queries["x"], queries["y"]), train, overwrite_output_dir=True,
            per_device_query_batch_size=len(queries["y"]), per_device_train_batch_size=settings.batch,
            score_args=arguments.ScoreArguments(damping_factor=damping * mean),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].T

    return PackageScorer(run.n, score, folder)


PACKAGES: dict[str, Callable[[TrainedRun, MethodSettings], PackageScorer]] = {
    "dattri_trak": dattri_trak,
    "traker": traker,
    "kronfluence_ekfac": kronfluence_ekfac,
}


@contextmanager
def contained() -> Iterator[None]:
    """Keeps their progress bars off ours, and undoes what they do to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _need(module: str) -> Any:
    package = module.partition(".")[0]
    name = {"trak": "traker"}.get(package, package)
    install = "'metagradient[peers]'"
    if name == "kronfluence":  # it asks for torchvision, which it does not use and which must match torch's build
        install = "--no-deps kronfluence accelerate einops einconv opt-einsum"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this method needs the package {name} ({error}): pip install {install}") from error


def _model(run: TrainedRun) -> nn.Module:
    """A copy of the trained model, for packages that change what they are given."""
    if not isinstance(run.learner, Classifier):
        raise UserError(
            f"other packages are set up for classifiers, not for {type(run.learner).__name__}: leave them out"
        )
    if run.train["y"].dim() != 1 or run.train["x"].dtype == torch.uint8:
        raise UserError(
            "other packages read class numbers [n] and no bytes (uint8): leave them out, or give such fields"
        )
    model = copy.deepcopy(run.learner).adopt(run.state).model.eval()  # the learner's own parameters are the run's start
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            module.__class__ = nn.Linear  # the same map under the name that they know
    return model


def _loader(examples: Fields, batch: int) -> DataLoader:
    return DataLoader(TensorDataset(examples["x"], examples["y"]), batch_size=batch)
