"""What one looks at after a selection: the weights, the metasteps, and the examples of the lowest weights."""

from collections.abc import Mapping, Sequence

from metagradient.data import Splits, TextSplits
from metagradient.data.own.chosen import write_chosen, write_chosen_texts
from metagradient.descent import Reading, Selection
from metagradient.reporting import Record, figures
from metagradient.reporting.pages.report import Distribution, Histogram, Ranking, report_page
from metagradient.studies.examples import examples_figure, identities, told

_TOLD = 200  # examples of the lowest, and of the highest weights that the page shows


def leave(record: Record, splits: Splits | TextSplits, chosen: Selection) -> None:
    """selection.csv, a row for each training example; and, of a file of the user's, the chosen rows as chosen.*."""
    unit = chosen.unit.removesuffix("s")
    header, cells = identities(splits, "train")
    rows = zip(cells, chosen.weights.tolist(), chosen.kept.tolist(), strict=True)
    path = record.csv("selection", [*header, unit, "kept"], ([*own, weight, kept] for own, weight, kept in rows))
    values = chosen.weights.long() if unit == "count" else chosen.weights
    if isinstance(splits, TextSplits):
        write_chosen_texts(splits, chosen.kept.numpy(), values.numpy(), unit, path.parent)
    else:
        write_chosen(splits, chosen.kept.numpy(), values.numpy(), unit, path.parent)


def draw_metasteps(
    record: Record,
    chosen: Selection,
    readings: Sequence[Reading],
    title: str,
    name: str,
    references: Mapping[str, float],
) -> None:
    """metasteps.png: the losses, and the measure that is called `title` in words and `held_out_<name>` in the readings."""
    series = {key: [reading.values[key] for reading in readings] for key in readings[0].values}
    record.figure(
        "metasteps",
        figures.metastep_curves(
            [reading.metastep for reading in readings],
            {"steering objective": series["objective"], "held-out loss": series["held_out_loss"]},
            {f"held-out {title}": series[f"held_out_{name}"]},
            references=references,
            chosen=chosen.metastep,
        ),
    )


def draw(
    record: Record,
    splits: Splits | TextSplits,
    chosen: Selection,
    readings: Sequence[Reading],
    title: str,
    name: str,
    references: Mapping[str, float],
) -> None:
    """weights.png, metasteps.png, most_down_weighted.png, report.html.

    Args:
        record: of the run.
        splits: the data set.
        chosen: by the descent.
        readings: of its metasteps.
        title: of the measure that stands beside the losses.
        name: its name in the readings, `held_out_<name>`.
        references: values of the measure on the test rows.
    """
    threshold = float(chosen.weights[chosen.kept].min()) if chosen.kept.any() else None
    wrong = None if splits.truth is None else splits.truth.wrong
    record.figure("weights", figures.weight_histogram(chosen.weights, wrong, threshold=threshold))
    draw_metasteps(record, chosen, readings, title, name, references)
    _browse(record, splits, chosen)
    if isinstance(splits, TextSplits):
        return
    lowest = chosen.weights.argsort(stable=True)[:12]
    given = splits.target_names(splits.train["y"][lowest])
    true = given if splits.truth is None else splits.target_names(splits.truth.y[lowest])
    captions = [a if a == b else f"{a} → {b}" for a, b in zip(given, true, strict=True)]
    above = "most down-weighted" + ("" if splits.truth is None else ": given label → true label")
    flags = [a != b for a, b in zip(given, true, strict=True)]
    record.figure(
        "most_down_weighted", examples_figure(splits, splits.train["x"][lowest], captions, flags, title=above)
    )


def _browse(record: Record, splits: Splits | TextSplits, chosen: Selection) -> None:
    """report.html: the examples of the lowest and the highest weights, and how the weights are spread."""
    order = chosen.weights.argsort(stable=True)
    lowest, highest = order[:_TOLD].tolist(), order.flip(0)[:_TOLD].tolist()
    train = told(splits, "train", sorted({*lowest, *highest}))
    parts = [("all training examples", chosen.weights)]
    if splits.truth is not None:
        wrong = splits.truth.wrong
        parts += [("right labels", chosen.weights[~wrong]), ("wrong labels", chosen.weights[wrong])]

    def ranking(name: str, rows: list[int]) -> Ranking:
        return Ranking(
            name, f"Training examples by their {chosen.unit}.", [(train[i], float(chosen.weights[i])) for i in rows]
        )

    tabs = (
        ranking("most down-weighted", lowest),
        ranking(f"highest {chosen.unit}", highest),
        Distribution(
            chosen.unit,
            "Bars grow with the logarithm of the count.",
            [(title, Histogram.of(values.numpy())) for title, values in parts],
        ),
    )
    page = report_page(
        f"The training examples that were wanted least, and most: {splits.name}",
        f"The learned {chosen.unit} of {len(chosen.weights)} training examples, of which {int(chosen.kept.sum())} are kept. "
        "A label that is known to be wrong is red, with the right one behind it.",
        tabs,
    )
    record.page(page)


def gain(learned: float, kept: float, everything: float) -> str:
    """What is to be said where neither the learned weights nor the kept rows did better than all data."""
    if max(learned, kept) > everything:
        return ""
    return " Nothing was gained: are the validation rows, which decided, right and enough?"
