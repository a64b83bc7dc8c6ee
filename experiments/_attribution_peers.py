"""Other packages on the same model, where installed: TRAK of `dattri`, as its users would call it."""

import importlib
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from metagradient.experiments._attribution import Task
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import metagradient as mg
from metagradient.errors import UserError


def dattri_trak(task: Task, batch: int, projection: int, damping: float = 0.0) -> Tensor:
    """Scores [n, q] of dattri's TRAK with one model, in its own units."""
    try:
        algorithm = importlib.import_module("dattri.algorithm")
        attribution_task = importlib.import_module("dattri.task").AttributionTask
    except ImportError as error:
        raise UserError(f"dattri_trak needs the package dattri ({error}): pip install 'metagradient[peers]'") from error
    if not isinstance(task.learner, mg.Classifier):
        raise UserError(f"dattri_trak is set up for classifiers, not for {type(task.learner).__name__}")
    model = task.learner.adopt(task.state).model.eval()
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def logits(params: Any, image: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (image,))

    def margin(params: Any, pair: Any) -> Tensor:
        image, label = pair
        loss = F.cross_entropy(logits(params, image.unsqueeze(0)), label.unsqueeze(0))
        return loss.neg().exp().logit(eps=1e-6)

    def probability(params: Any, pair: Any) -> Tensor:
        image, label = pair
        return F.cross_entropy(logits(params, image.unsqueeze(0)), label.unsqueeze(0)).neg().exp()

    train, test = (DataLoader(TensorDataset(d["x"], d["y"]), batch_size=batch) for d in (task.train, task.queries))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"proj_dim": projection, "device": "cpu", "proj_max_batch_size": 32, "proj_seed": 0}
        setup = attribution_task(margin, model, [weights])
        method = algorithm.TRAKAttributor(setup, probability, projector_kwargs=settings, regularization=damping)
        method.cache(train)
        with torch.enable_grad():
            found = method.attribute(train_dataloader=train, test_dataloader=test)
    return found.detach().float()
