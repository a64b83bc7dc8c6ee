"""Figures of smoothness, poisoning and schedules show the numbers they were given, and nothing is cut off."""

import math

from matplotlib.figure import Figure

from metagradient.reporting.figures import descent as descent_figures


def inside(figure: Figure) -> bool:
    """Every legend lies within the figure."""
    figure.draw_without_rendering()
    whole, boxes = figure.bbox, [legend.get_window_extent() for legend in figure.legends]
    return all(b.x0 >= whole.x0 and b.x1 <= whole.x1 and b.y0 >= whole.y0 and b.y1 <= whole.y1 for b in boxes)


def test_smoothness_against_accuracy() -> None:
    row = {"of": "weights", "low": 0.1, "high": 0.3}
    rows = [
        {**row, "variant": "as configured", "metasmoothness": 0.2, "test accuracy": 0.9},
        {
            **row,
            "variant": "a wide one",
            "metasmoothness": math.nan,
            "low": math.nan,
            "high": math.nan,
            "test accuracy": 0.8,
        },
    ]
    figure = descent_figures.smoothness_figure(rows)
    (axes,) = figure.axes
    assert (axes.lines[0].get_xdata()[0], axes.lines[0].get_ydata()[0]) == (0.9, 0.2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["as configured", "a wide one"]
    assert inside(figure)


def test_drops_of_every_attack() -> None:
    attacks = ("metagradient", "gradient cancelling", "gradient cancelling unclipped", "uniform noise")
    rows = [
        {"share": share, "attack": attack, "victims": victims, "drop": 0.1 * i + share, "sd of drop": 0.01}
        for share in (0.03, 0.01)
        for i, attack in enumerate(attacks)
        for victims in ("the same", "MLP")
    ]
    figure = descent_figures.drops_figure(rows)
    first = figure.axes[0].lines[0]
    assert first.get_ydata().tolist() == [0.01, 0.03]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(attacks)
    assert inside(figure)


def test_compute_and_schedules() -> None:
    figure = descent_figures.compute_figure({"grid": ([1, 2, 3], [0.5, math.inf, 0.2])})
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert math.isnan(line.get_ydata()[1])
    lines = descent_figures.schedules_figure([[0.1, 0.2], [0.3, 0.4]]).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[0.1, 0.2], [0.3, 0.4]]
    (left, right) = descent_figures.pair_figure({"found": [0.1, 0.2], "grid": [0.0, 0.2]}).axes
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    assert math.isnan(right.lines[1].get_ydata()[0])  # a rate of 0 has no place on a logarithmic axis
