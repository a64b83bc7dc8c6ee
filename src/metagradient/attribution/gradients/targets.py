"""What is differentiated per example: the loss itself, and what the Gauss-Newton curvature is made of.

For losses that are the mean over T positions of a cross entropy (T = 1 for a classifier), the generalised Gauss-Newton
matrix of example b is (1/T) sum_t J_bt^T (diag p_bt - p_bt p_bt^T) J_bt, with J the Jacobian of the logits and p the
model's probabilities; a learner's `position_weights(batch) -> [B, T]` take the place of 1/T. It is the second moment of gradients with labels drawn from the model, so a Gauss-Newton
matrix is summed from per-example gradients as an empirical Fisher is; only the labels differ.

A learner of another loss says itself what its Gauss-Newton matrix is made of: `gauss_newton_terms(batch) -> [B, K]`, whose
gradients' outer products, summed over K, are the matrix of each example. Sums of the terms with random signs stand where
labels are drawn: their gradients' outer products are the matrix in expectation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metagradient.attribution.gradients.hooks import Target
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch
from metagradient.training.random import generator


def _logits(learner: Learner, batch: Batch) -> Tensor:
    """[B, T, C]."""
    logits: Callable[[Batch], Tensor] | None = getattr(learner, "logits", None)
    if logits is None:
        raise UserError(
            f"the Gauss-Newton matrix needs the logits whose mean cross entropy is the loss: {type(learner).__name__} has "
            "no method logits(batch) -> [B, ..., C] (nor gauss_newton_terms(batch) -> [B, K]); write one, or set curvature=fisher"
        )
    found = logits(batch)
    return found.reshape(len(batch), -1, found.shape[-1])


def _terms(learner: Learner, batch: Batch) -> Tensor | None:
    """[B, K], where the learner has some of its own."""
    terms: Callable[[Batch], Tensor] | None = getattr(learner, "gauss_newton_terms", None)
    return None if terms is None else terms(batch)


def _factors(learner: Learner, batch: Batch, logits: Tensor) -> Tensor:
    """The positions' factors in the loss, [B, T]: 0 of what is no target, or of examples without a label."""
    factors: Callable[[Batch], Tensor] | None = getattr(learner, "position_weights", None)
    if factors is not None:
        return factors(batch).to(logits)
    even = logits.new_full(logits.shape[:2], 1 / logits.shape[1])
    has_label: Callable[[Batch], Tensor | None] | None = getattr(learner, "has_label", None)
    there = None if has_label is None else has_label(batch)
    return even if there is None else torch.where(there[:, None], even, 0)


def enumerated(learner: Learner, batch: Batch) -> Tensor:
    """[C, B]: -sqrt(p_c) log p_c for each class, the factor not differentiated. Their gradients' outer products, summed
    over c, are the Gauss-Newton matrix exactly. For one position (T = 1). Or a learner's own terms, [K, B]."""
    terms = _terms(learner, batch)
    if terms is not None:
        return terms.T
    logits = _logits(learner, batch)
    if logits.shape[1] != 1:
        raise UserError(
            f"labels cannot be enumerated over {logits.shape[1]} positions: draw them instead, for example labels=1"
        )
    logp = F.log_softmax(logits[:, 0], dim=-1).T
    found = -(0.5 * logp).exp().detach() * logp
    return torch.where(_factors(learner, batch, logits)[:, 0] > 0, found, 0)  # the loss of the others is 0 in any case


def drawn(draws: int, seed: int) -> Target:
    """[S, B] with S = `draws`: labels drawn from the model, the same ones whenever the same batch is asked for.

    The factors 1 / sqrt(T S) make the expected sum over s of the gradients' outer products the Gauss-Newton matrix.
    """

    def target(learner: Learner, batch: Batch) -> Tensor:
        terms = _terms(learner, batch)
        if terms is not None:
            rng = generator(seed, int(batch.index[0]) if len(terms) else 0, device=terms.device)
            signs = torch.randint(2, (draws, *terms.shape), generator=rng, device=terms.device).to(terms) * 2 - 1
            return (signs * terms).sum(2) / draws**0.5
        logits = _logits(learner, batch)
        factors = _factors(learner, batch, logits)
        rows, positions = factors.nonzero(as_tuple=True)  # labels are drawn of targets alone, however rows are padded
        logp = F.log_softmax(logits[rows, positions], dim=-1)  # [M, C]
        total = logp.new_zeros(len(batch), draws)
        if len(rows):
            rng = generator(seed, int(batch.index[0]), device=logp.device)
            labels = torch.multinomial(logp.detach().exp(), draws, replacement=True, generator=rng)
            chosen = factors[rows, positions].sqrt()[:, None] * logp.gather(1, labels)
            total = total.index_add(0, rows, -chosen / draws**0.5)
        return total.T

    return target
