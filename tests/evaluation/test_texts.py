"""Multiple choice: the option that is likeliest as a whole is the answer."""

import torch

import metagradient as mg
from metagradient.evaluation.texts import choice_accuracy, right_share
from metagradient.training import initial_state


def test_the_option_of_least_loss_answers_and_ties_are_wrong():
    question, right = torch.tensor([7, 7, 9, 9, 9, 4, 4]), torch.tensor([1, 0, 0, 1, 0, 0, 1]).bool()
    losses = torch.tensor([1.0, 2.0, 0.5, 0.6, 3.0, 1.0, 1.0])
    assert right_share(losses, question, right) == 1 / 3


class Bigram(torch.nn.Module):
    """Log probabilities of the next token by the token before."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(logits)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


def test_options_of_different_length_are_compared_by_all_their_tokens():
    """0 -> 1 is likelier than 0 -> 2, but 2 -> 3 is nearly sure while 1 -> 3 is not: the means and the sums disagree."""
    p = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.3, 0.3, 0.1, 0.3], [0.02, 0.02, 0.01, 0.95], [0.25] * 4])
    learner = mg.LanguageModel(Bigram(p.log()))
    tokens = torch.tensor([[0, 2, 3], [0, 1, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    labels = torch.where(mask & (torch.arange(3) > 0), tokens, -100)
    options = {"tokens": tokens, "mask": mask, "labels": labels}
    options |= {"question": torch.zeros(2, dtype=torch.int64), "right": torch.tensor([True, False])}
    state = initial_state(learner)
    # .3 * .95 = .285 < .5, although the mean loss of the first, -log(.285) / 2, is less than -log(.5).
    assert choice_accuracy(learner, state, options) == 0.0
    assert choice_accuracy(mg.LanguageModel(Bigram(p.log()), reduction="sum"), state, options) == 0.0
