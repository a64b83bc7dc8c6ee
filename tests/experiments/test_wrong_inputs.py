"""What a new user types wrong, in every experiment: one line, which says what is wrong and what to type instead."""

from pathlib import Path

import pytest
from console import run_in

WRONG = [
    # experiment, what was typed, what is wrong, what to type
    ("selection", ["lr=0.1"], "no setting 'lr'", "learner.learning_rate"),
    ("selection", ["learner.learning_rate=abc"], "expected a number, got 'abc'", "learner.learning_rate=0.05"),
    ("selection", ["learner.momentum=0.9"], "no setting 'learner.momentum'", "learner.optimizer.momentum"),
    ("selection", ["-m", "learner.lr=0.1,0.2"], "no setting 'learner.lr'", "learner.learning_rate"),
    ("selection", ["experiment=cifar"], "no option 'cifar'", "experiment=cifar10_noisy"),
    ("selection", ["debug=nul"], "no option 'nul'", "there are: fast"),
    ("selection", ["seed"], "cannot read the override 'seed'", "seed=..."),
    ("selection", ["--seed=1"], "no flag '--seed=1'", "without dashes: seed=1"),
    ("selection", ["--mutirun"], "no flag '--mutirun'", "--multirun"),
    ("selection", ["seed=0,1,2"], "several values", "add -m"),
    ("selection", ["refit=maybe"], "expected true or false, got 'maybe'", "refit=true"),
    ("poisoning", ["shares=3%"], "expected a list, got '3%'", "shares=[0.05]"),
    ("poisoning", ["victims=0"], "victims must be an integer >= 1", "victims=5"),
    ("poisoning", ["method=sign"], "no option 'sign'", "method=signs"),
    ("poisoning", ["-m", "shares=[0.01],3"], "expected a list, got '3'", "shares=[3]"),
    ("selection", ["+trainer.max_epochs=3"], "the plan holds the epochs", "learner.epochs"),
    ("unlearning", ["+trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1 cannot be set", "learner.clip_norm"),
    ("attribution", ["trainer.precision=bf16-mixed"], "in low precision are wrong", "trainer.precision=32-true"),
    ("schedule", ["learner.schedule=cosin"], "learner.schedule=cosin", "cosine"),
    ("schedule", ["method.metasteps=ten"], "expected a number, got 'ten'", "method.metasteps=30"),
    ("schedule", ["grid=horizons"], "nothing is chosen for 'grid'", "+grid=horizons"),
    ("attribution", ["methods=[dropout]"], "no method 'dropout'", "dropout:k"),
    ("attribution", ["methods=exact"], "expected a list, got 'exact'", "methods=[exact]"),
    ("attribution", ["queries=100000"], "queries=100000", "set queries=497"),
    ("smoothness", ["metaparameters=[pixel]"], "'pixel'", "metaparameters=[weights]"),
    ("smoothness", ["grid.ablations"], "cannot read the override", "key=value"),
    ("smoothness", ["directions=0"], "directions must be an integer >= 1", "directions=4"),
    ("cost", ["models=[resnet]"], "resnet", "resnet9"),
    ("cost", ["trainer.devices=2"], "cost runs on one device so far", "trainer.devices=1"),
    ("cost", ["steps=1000"], "expected a list, got '1000'", "steps=[1000]"),
    ("unlearning", ["delete.rows=worst"], "not 'worst'", "highest_loss"),
    ("unlearning", ["method=delta_grad"], "no option 'delta_grad'", "method=deltagrad"),
    ("unlearning", ["resume=yesterday"], "resume=yesterday is no folder", "resume=true"),
    ("selection", ["~model"], "selection reads it", "model=..."),
    ("schedule", ["~learner.batch_size"], "schedule reads it", "learner.batch_size=..."),
    ("poisoning", ["method=null"], "no option of that name", "see --help"),
    ("attribution", ["model=3"], "is a name, not a number", "see --help"),
    ("smoothness", ["-m", "seed=1,2,1"], "seed=1,2,1: a value stands twice", "give each once"),
    ("unlearning", ["+seed=3"], "'seed' exists already", "without the +: seed="),
]


@pytest.mark.parametrize(
    ("experiment", "typed", "wrong", "instead"), WRONG, ids=[f"{name} {' '.join(typed)}" for name, typed, *_ in WRONG]
)
def test_one_line_says_what_is_wrong_and_what_to_type(
    tmp_path: Path, experiment: str, typed: list[str], wrong: str, instead: str
) -> None:
    done = run_in(tmp_path, experiment, *typed, "logger.mode=disabled")
    assert done.status == 2
    assert done.err.startswith(f"metagradient {experiment}: ")
    assert done.err.count("\n") == 1
    assert wrong in done.err
    assert instead in done.err


def test_the_list_spans_all_experiments() -> None:
    from metagradient.cli.command import experiments

    assert {experiment for experiment, *_ in WRONG} == set(experiments())
    assert len(WRONG) >= 20
