"""Values that are wrong or mean nothing: one line with what to type instead, status 2; what is only odd is told."""

from pathlib import Path

import pytest
from console import run_in

FAST = ["debug=fast", "logger.mode=disabled"]
REFUSED = [
    ("selection learner.batch_size=0", "set learner.batch_size=100"),
    ("selection data.noise.fraction=1", "set data.noise.fraction=0.4"),
    ("selection trainer.threads=-1", "set trainer.threads=1"),
    ("selection trainer.threads=1000", "would hardly move: set trainer.threads="),
    ("selection trainer.threads=1000000", "set trainer.threads=1"),
    ("selection filter_fractions=[a]", "set filter_fractions=[0.1]"),
    ("selection model.hidden=[-1]", "set model.hidden=[128]"),
    ("selection model.hidden=[0]", "set model.hidden=[128]"),
    ("selection trainer.matmul=fast", "set trainer.matmul=highest"),
    ("selection trainer.precision=foo", "use trainer.precision=32-true or 64-true"),
    ("selection smoothness={directions:1}", "smoothness.h is missing: set smoothness.h=0.05"),
    ("selection learner.optimizer.momentum=1.5", "set learner.optimizer.momentum=0.9"),
    ("selection seed=9223372036854775808", "set seed=0"),
    ("selection seed=1180591620717411303424", "set seed=0"),
    ("selection learner.epochs=3 experiment=mnist_hypercleaning_linear", "set learner.steps=null as well"),
    ("selection +learner._target_=foo.Bar", "give package.Class"),
    ("selection --seed 3", "seed=3"),
    ("poisoning augmentation.pixels=100", "out of their frame: set augmentation.pixels=1"),
    ("poisoning shares=[]", "set shares=[0.03]"),
    ("attribution drop=[nan]", "set drop=[0.5]"),
    ("attribution dampings=[]", "set dampings=[1]"),
    ("attribution damping=inf", "set damping=1"),
    ("attribution methods=[exact,exact]", "set methods=[exact]"),
    ("attribution queries_per_replay=0", "set queries_per_replay=1"),
    ("attribution brittleness=[0]", "set brittleness=[10]"),
    ("attribution brittleness=[100000]", "are all of the 300: set brittleness=[30]"),
    ("attribution trainer.precision=bf16-mixed", "use trainer.precision=32-true or 64-true"),
    ("schedule grid.warmups=[]", "set grid.warmups=[0.1]"),
    ("schedule grid.warmups=[2.0]", "set grid.warmups=[0.1]"),
    ("schedule grid.high=inf", "set grid.high=2"),
    ("schedule stretch=1000000", "set stretch=2"),
    ("attribution race.examples=0", "set race.examples=512"),
    ("unlearning stream.requests=3 stream.judge_every=0", "set stream.judge_every=10"),
    ("unlearning stream.requests=1.5", "set stream.requests=0"),
    ("unlearning stream.requests=-1", "set stream.requests=0"),
    ("unlearning klom.models=-2", "set klom.models=0"),
    ("unlearning klom.models=1", "set klom.models=0"),
    ("unlearning output_noise=1e38", "set output_noise=0"),
    ("unlearning frontier.targets=[-1]", "set frontier.targets=[0.1]"),
    ("unlearning delete.label=3", "set delete.rows=class, or leave it out"),
    ("unlearning delete.rows=file delete.file=superscript", "must hold row numbers, one a line, not '²'"),
    ("unlearning delete.rows=file delete.file=beyond", f"not '{2**70}'"),
]
TOLD = [
    ("selection held_out=0.999", "leaves 0.001 of the validation rows"),
    ("selection learner.learning_rate=0", "nothing is learned"),
    ("selection +augmentation.pixels=100", "is read by nothing"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "instead"), REFUSED)
def test_one_line_refuses_it(tmp_path: Path, typed: str, instead: str) -> None:
    (tmp_path / "superscript").write_text("3\n²\n")
    (tmp_path / "beyond").write_text(f"{2**70}\n")
    done = run_in(tmp_path, *typed.split(), *FAST)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert instead in done.err
    assert not list(tmp_path.glob("outputs/*/*/artifacts/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "told"), TOLD)
def test_one_line_tells_of_it(tmp_path: Path, typed: str, told: str) -> None:
    done = run_in(tmp_path, *typed.split(), *FAST)
    assert done.status == 0
    assert any(line.startswith("warning: ") and told in line for line in done.err.splitlines())
