"""What a model of pairs knows without having been trained for it: the right text among others, and classes by their names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Fields
from metagradient.training.model import Embedding
from metagradient.training.random import generator
from metagradient.training.sources import in_order
from metagradient.training.state import TrainState


@dataclass(frozen=True)
class Retrieval:
    """Retrieval among m pairs: shares of right answers in [0, 1], and losses in nats.

    Attributes:
        text: of images whose own text is the most similar of m.
        image: of texts whose own image is.
        loss: the mean of both directions' cross entropies among the m, at the model's own scale of similarities.
    """

    text: float
    image: float
    loss: float


def embeddings(learner: Learner, state: TrainState, pairs: Fields) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [n, D] of images and of texts, and the scale [] of their similarities; on the CPU.

    Raises:
        UserError: the learner has no `embed`.
    """
    if not isinstance(learner, Embedding):
        raise UserError(
            f"{type(learner).__name__} has no embed(batch) -> (a, b, ...), by which pairs are compared: a ContrastiveLearner has"
        )
    parts = []
    with torch.no_grad(), learner.evaluating(state):
        for rows, fields in in_order(pairs, learner.rows_at_once(pairs)):
            batch = Batch(0, rows, fields).to(state.params.device, state.params.dtype)
            a, b, *rest = learner.embed(batch)
            parts.append((a.cpu(), b.cpu(), rest[0].cpu() if rest else torch.ones(len(a))))
    a, b, scale = (torch.cat(column) for column in zip(*parts, strict=True))
    return a, b, scale[0]


def retrieval(
    learner: Learner, state: TrainState, pairs: Fields, among: int = 100, groupings: int = 5, seed: int = 0
) -> Retrieval:
    """How often a pair's own half is the most similar among `among` pairs.

    The pairs are dealt out into groups of `among` (of all, where there are fewer), at random, `groupings` times; what does
    not fill a group is left out of that grouping. Halves that say the same (field `pair`) are all right.

    Raises:
        UserError: fewer than two pairs, or no groups.
    """
    n = len(next(iter(pairs.values())))
    if n < 2 or among < 2 or groupings < 1:
        raise UserError(
            f"retrieval among {among} of {n} pairs in {groupings} groupings says nothing: give 2 or more pairs "
            "(data.validation, data.test), among=100 and groupings=5"
        )
    a, b, scale = embeddings(learner, state, pairs)
    same = pairs["pair"].cpu() if "pair" in pairs else torch.arange(n)
    m = min(among, n)
    text, image, loss = [], [], []
    for grouping in range(groupings):
        order = torch.randperm(n, generator=generator(seed, grouping))[: n // m * m].view(-1, m)
        logits = scale * a[order] @ b[order].transpose(1, 2)  # [groups, m, m]
        own = same[order]
        text.append((own.gather(1, logits.argmax(2)) == own).double().mean())
        image.append((own.gather(1, logits.argmax(1)) == own).double().mean())
        right = logits.diagonal(dim1=1, dim2=2)
        loss.append((logits.logsumexp(2) + logits.logsumexp(1) - 2 * right).mean() / 2)
    return Retrieval(*(float(torch.stack(values).mean()) for values in (text, image, loss)))


def class_embeddings(learner: Learner, state: TrainState, prompts: Tensor, pairs: Fields) -> Tensor:
    """[C, D]: of each class the direction of the mean embedding of its prompts.

    Args:
        learner: of pairs.
        state: of the model.
        prompts: tokens int64 [C, T, length] of T templates filled with each class's name ("a drawing of a %s").
        pairs: some, whose first image goes with every prompt into the model, which takes pairs.
    """
    classes, templates = prompts.shape[:2]
    tokens = prompts.flatten(0, 1)
    image = pairs["x"][:1].expand(len(tokens), *pairs["x"].shape[1:])
    _, b, _ = embeddings(learner, state, {"x": image, "y": tokens})
    mean = b.view(classes, templates, -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def class_accuracy(learner: Learner, state: TrainState, images: Tensor, labels: Tensor, prompts: Tensor) -> float:
    """The share of images [n, ...] that are most similar to their class [n] of `class_embeddings`, in [0, 1]."""
    pairs = {"x": images, "y": prompts[:1, 0].expand(len(images), -1)}
    a, _, _ = embeddings(learner, state, pairs)
    names = class_embeddings(learner, state, prompts, pairs)
    return float(((a @ names.T).argmax(1) == labels.cpu()).double().mean())
