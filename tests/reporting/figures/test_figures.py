"""What the figures show is what they were given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from metagradient.reporting import figures
from metagradient.reporting.figures.style import CRIMSON


def test_histogram_counts_kept_examples_and_is_saved_readable(tmp_path: Path) -> None:
    weights = torch.tensor([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    wrong = torch.tensor([True, True, True, False, False, False])
    figure = figures.weight_histogram(weights, wrong, threshold=0.5)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["label correct (3, 100% kept)", "label wrong (3, 33% kept)"]
    figure.savefig(tmp_path / "a.png", dpi=160)
    width, height = figure.get_size_inches() * 160
    assert (width, height) == (1024, 512)


def test_counts_have_one_bar_each() -> None:
    (axes,) = figures.weight_histogram([0, 0, 1, 3, 3, 3], threshold=1).axes
    assert {(round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in axes.patches} == {
        (0, 2),
        (1, 1),
        (3, 3),
    }
    assert axes.get_xlabel() == "learned count"


def test_metastep_curves_mark_references_and_the_chosen_step() -> None:
    steps = range(4)
    figure = figures.metastep_curves(
        steps,
        {"validation": [3, 2, 1, 2]},
        {"validation": [0.1, 0.2, 0.3, 0.2]},
        {"oracle": 0.9, "all data": 0.895},
        chosen=2,
    )
    objective, accuracy = figure.axes
    assert objective.get_lines()[0].get_ydata().tolist() == [3, 2, 1, 2]
    notes = {text.get_text(): text.xy[1] for text in accuracy.texts}
    assert notes.keys() == {"oracle 0.9", "all data 0.895"}
    assert notes["oracle 0.9"] - notes["all data 0.895"] > 0.05  # pushed apart, or they would overlap


def test_wrong_labels_are_red_and_long_ones_broken() -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 4, 4))
    figure = figures.image_grid(images, ["cat → dog", "frog → automobile", "cat → cat"], [True, True, False], columns=2)
    titles = [axes.title for axes in figure.axes]
    assert [title.get_text() for title in titles] == ["cat\n→ dog", "frog\n→ automobile", "cat\n→ cat", ""]
    assert [to_hex(title.get_color()) == CRIMSON.lower() for title in titles[:3]] == [True, True, False]
    shown = figure.axes[0].images[0].get_array()
    assert (shown.min(), shown.max()) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 images but 1 captions"):
        figures.image_grid(images, ["cat"])


def test_cost_has_one_line_for_each_plan_in_both_panels() -> None:
    rows = [
        {
            "model": "MLP",
            "steps": steps,
            "plan": plan,
            "time_ratio": ratio,
            "memory_mib": None if plan == "higher" else 9.0,
        }
        for steps in (1000, 100)
        for plan, ratio in (("auto", 2.5), ("sqrt", 3.4), ("higher", 5.0))
    ]
    figure = figures.cost_figure(rows)
    time, memory = figure.axes
    lines = {line.get_label(): line for line in time.get_lines()}
    assert lines["sqrt"].get_xdata().tolist() == [100, 1000]
    assert lines["sqrt"].get_ydata().tolist() == [3.4, 3.4]
    assert np.isnan({line.get_label(): line for line in memory.get_lines()}["higher"].get_ydata()).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["auto", "sqrt", "higher"]
