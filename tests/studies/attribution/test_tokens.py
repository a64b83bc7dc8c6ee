"""Texts token by token: what pages show of them, and which scores are whose."""

import torch

import metagradient as mg
from metagradient import models
from metagradient.data import made_instructions
from metagradient.evaluation import example_losses_of, take, token_losses_of
from metagradient.studies.attribution.task import Task, words_of
from metagradient.studies.attribution.tokens import TokenScores, by_tokens, tokens_of
from metagradient.studies.examples import told

MADE = made_instructions(train=30, validation=2, test=5, target="pool")


def test_pieces_are_the_text_and_targets_its_response() -> None:
    said = MADE.describe(MADE.train["tokens"], MADE.train["mask"])
    for row, tokens in tokens_of(MADE, "train", [3, 0, 17]).items():
        assert "".join(tokens.pieces) == said[row]
        response = "".join(piece for piece, target in zip(tokens.pieces, tokens.targets, strict=True) if target)
        assert said[row].endswith(f"<|assistant|>{response}")
        assert response.endswith("<|end|>")


def test_scores_of_a_text_are_a_part_of_all() -> None:
    counts = torch.tensor([2, 0, 3, 1])
    scores = TokenScores(torch.arange(12.0).view(6, 2), counts, cost=1.0)
    assert scores.of([2, 0, 1], query=1) == {2: [5.0, 7.0, 9.0], 0: [1.0, 3.0], 1: []}


def test_losses_of_tokens_are_those_of_the_queries_targets() -> None:
    torch.manual_seed(0)
    model = models.GPT(MADE.tokenizer.size, MADE.train["tokens"].shape[1] - 1, layers=1, heads=2, width=8)
    learner = mg.LanguageModel(model, mg.SGD(), 0.1)
    routine = mg.Routine(lambda schedule: learner, schedule=lambda steps: mg.Constant(0.1), batch_size=10, epochs=1)
    queries, state = take(MADE.test, torch.arange(4)), mg.initial_state(learner)
    task = Task(
        learner=learner,
        batches=mg.Batches(MADE.train, torch.tensor([[0, 1]])),
        state=state,
        routine=routine,
        held_out=MADE.validation,
        queries=queries,
        seconds=None,
    )
    means = example_losses_of(learner, state, queries)
    torch.testing.assert_close(
        token_losses_of(learner, state, queries, chunk=3).sum(1), means * (queries["labels"] >= 0).sum(1)
    )
    train, asked = by_tokens(MADE, task, told(MADE, "train", [7]), told(MADE, "test", range(4)))
    assert train[7].tokens is not None
    assert train[7].tokens.losses == ()
    for q, one in asked.items():
        assert one.tokens is not None
        assert len(one.tokens.losses) == sum(one.tokens.targets)
        assert abs(sum(one.tokens.losses) / len(one.tokens.losses) - float(means[q])) < 1e-5


def test_words_are_small_and_without_padding() -> None:
    (found,) = words_of(MADE, take(MADE.train, torch.tensor([0])))
    (said,) = MADE.describe(MADE.train["tokens"][:1], MADE.train["mask"][:1])
    assert "".join(found) == said.lower().replace(" ", "").replace("⏎", "⏎")
