"""Pretraining: every run starts from the one model that a plain training on the corpus ends in."""

import torch

import metagradient as mg
from metagradient.data import made_instructions
from metagradient.models import GPT
from metagradient.studies.selection.pretraining import pretrained
from metagradient.training import initial_state


def test_runs_start_where_the_pretraining_ended():
    splits = made_instructions(train=40, validation=12, test=8, vocab=300, corpus=30)
    assert splits.corpus is not None
    length = splits.train["tokens"].shape[1]

    def make(schedule: mg.Schedule) -> mg.Learner:
        return mg.LanguageModel(GPT(splits.tokenizer.size, length, 1, 2, 16), mg.AdamW(), schedule)

    routine = mg.Routine(make, schedule=lambda steps: mg.Constant(0.5), batch_size=10, steps=7)
    started = pretrained(routine, splits.corpus, steps=6, learning_rate=0.01, seed=3)

    plain = mg.Routine(make, schedule=lambda steps: mg.OneCycle(0.01, 6), batch_size=10, steps=6)
    _, end = plain.train(splits.corpus, 3)
    for seed in (0, 1):  # whatever their own seed is
        assert torch.equal(initial_state(started.learner(seed, 7)).params, end.params)
    assert started.learner(0, 7).update.schedule(0) == 0.5  # their own schedule, and number of steps
    assert len(started.batches(splits.train, 0)) == 7
