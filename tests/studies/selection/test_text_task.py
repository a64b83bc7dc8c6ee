"""The task of a pool of texts: what its readings measure, in which direction, and on which questions."""

import dataclasses

import torch
from omegaconf import OmegaConf
from torch import Tensor

import metagradient as mg
from metagradient.data import made_instructions
from metagradient.models import GPT
from metagradient.studies.selection.texts import Texts, _of_questions
from metagradient.training import initial_state


def options(splits_table: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two options for each row of a table: its own response, and a token that no model prefers by chance alone."""
    own = {name: x.repeat_interleave(2, 0) for name, x in splits_table.items()}
    n = len(splits_table["tokens"])
    return own | {
        "question": torch.arange(n).repeat_interleave(2),
        "right": torch.tensor([True, False]).repeat(n),
    }


def make(choices: bool = False) -> tuple[Texts, mg.Learner]:
    splits = made_instructions(train=40, validation=12, test=8, vocab=300)
    if choices:
        splits = dataclasses.replace(splits, choices={"validation": options(dict(splits.validation))})
    length = splits.train["tokens"].shape[1]
    routine = mg.Routine(
        lambda schedule: mg.LanguageModel(GPT(splits.tokenizer.size, length, 1, 2, 16), mg.AdamW(), schedule),
        schedule=lambda steps: mg.Constant(0.01),
        batch_size=10,
        steps=30,
    )
    task = Texts(
        OmegaConf.create({"seed": 0, "held_out": 0.25}), splits, routine, dict(splits.train), dict(splits.validation)
    )
    return task, routine.learner(0, 1)


def test_a_model_that_was_trained_on_rows_is_worth_more_on_them():
    task, untrained = make()
    learner, state = task.routine.train(task.validation, 0)
    before = task.worth(untrained, initial_state(untrained), task.validation)
    assert task.worth(learner, state, task.validation) > before
    assert task.judged(learner, state)["target_loss"] == -task.worth(learner, state, task.splits.test)


def test_wrong_responses_count_against_the_kept():
    task, _ = make()
    wrong = task.splits.truth.wrong
    assert task.found(~wrong) == {"f1_clean": 1.0}
    assert task.found(wrong) == {"f1_clean": 0.0}


def test_options_of_the_questions_that_choose_are_theirs_alone():
    task, learner = make(choices=True)
    assert task.options is not None
    assert sorted(task.options["question"].unique().tolist()) == sorted(task.rows_held_out.tolist())
    assert "held_out_accuracy" in task.score(learner, initial_state(learner))
    gaps = {"question": torch.tensor([7, 7, 9, 9]), "right": torch.tensor([True, False] * 2)}
    assert _of_questions(gaps, torch.tensor([1]))["question"].tolist() == [9, 9]
