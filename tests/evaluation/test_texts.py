"""Multiple choice: the option that is likeliest as a whole is the answer."""

import torch

import metagradient as mg
from metagradient.evaluation import example_losses_of
from metagradient.evaluation.texts import _of_letters, choice_accuracy, right_share
from metagradient.models import GPT
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


def test_letters_are_read_from_one_look_at_their_question():
    """As from a row for each letter; a question in which they do not stand behind the same words is looked at row by row."""
    torch.manual_seed(0)
    model = GPT(vocab=11, width=16, layers=1, heads=2, block=7).double()
    calls = []
    model.register_forward_hook(lambda module, given, said: calls.append(len(given[0])))
    learner = mg.LanguageModel(model)
    state = initial_state(learner)
    lengths, letters = torch.tensor([4, 6, 3, 5, 6]), torch.tensor([8, 9, 10])
    tokens = torch.randint(1, 8, (5, 7)).repeat_interleave(3, 0)
    ends = lengths.repeat_interleave(3)
    places = torch.arange(7)
    tokens = torch.where(places == ends[:, None], letters.repeat(5)[:, None], tokens)
    mask = places <= ends[:, None]
    options = {"tokens": tokens, "mask": mask, "labels": torch.where(places == ends[:, None], tokens, -100)}
    options |= {"question": torch.arange(5).repeat_interleave(3), "right": torch.arange(15) % 3 == 1}
    expected = example_losses_of(learner, state, {name: options[name] for name in ("tokens", "mask", "labels")})
    calls.clear()
    torch.testing.assert_close(_of_letters(learner, state, options), expected, rtol=1e-12, atol=1e-12)
    assert sum(calls) == 5
    assert choice_accuracy(learner, state, options) == right_share(expected, options["question"], options["right"])
    options["tokens"][4, 0] = 0
    assert _of_letters(learner, state, options) is None
