"""How well a language model answers: likelihood and multiple choice."""

from __future__ import annotations

import torch
from torch import Tensor

from metagradient.evaluation.classification import example_losses_of, next_logits_of
from metagradient.learners.language import LanguageModel
from metagradient.learners.learner import Learner
from metagradient.training.batches import Fields
from metagradient.training.state import TrainState
from metagradient.training.tokens import target_counts, target_mask


def choice_accuracy(learner: Learner, state: TrainState, options: Fields) -> float:
    """The share of multiple choice questions whose right option is the likeliest, all its tokens together; in [0, 1].

    Args:
        learner: a language model, whose losses are means over target tokens, or sums.
        state: of the model.
        options: a row for each option: tokens, mask, labels, `question` int64 [m] and `right` bool [m].
    """
    losses = _of_letters(learner, state, options) if isinstance(learner, LanguageModel) else None
    if losses is None:
        losses = example_losses_of(learner, state, {name: x for name, x in options.items() if name not in _OWN})
        if getattr(learner, "reduction", "mean") == "mean":
            losses = losses * target_counts(options)
    return right_share(losses, options["question"], options["right"])


def _of_letters(learner: LanguageModel, state: TrainState, options: Fields) -> Tensor | None:
    """The losses [m] of options that are each one token behind their question, which is then run once; None of others."""
    tokens, there = options["tokens"], target_mask(options, learner.ignore_index)
    if not bool((there.sum(1) == 1).all()):
        return None
    end = there.int().argmax(1)  # of the prompt
    own = torch.arange(tokens.shape[1]) < end[:, None]
    prompts = torch.where(own, tokens, -1)
    names, place = options["question"].unique(return_inverse=True)
    first = torch.full_like(names, len(tokens)).scatter_reduce_(0, place, torch.arange(len(tokens)), "amin")
    if not torch.equal(prompts, prompts[first][place]):
        return None
    asked = {"tokens": torch.where(own, tokens, 0)[first], "mask": own[first]}
    logits = next_logits_of(learner, state, asked)
    answers = tokens[torch.arange(len(tokens)), end]
    return torch.logsumexp(logits, 1)[place] - logits[place, answers]


_OWN = ("question", "right")


def right_share(losses: Tensor, question: Tensor, right: Tensor) -> float:
    """The share of questions whose option of least loss [m] is right [m]; of equals none is."""
    names, place = question.unique(return_inverse=True)
    best = torch.full((2, len(names)), torch.inf, dtype=losses.dtype)
    for kind in (0, 1):
        rows = right == bool(kind)
        best[kind].scatter_reduce_(0, place[rows], losses[rows], "amin")
    return float((best[1] < best[0]).double().mean())
