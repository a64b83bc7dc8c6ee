"""What one looks at after a selection: the weights, the metasteps, and the examples of the lowest weights."""

from collections.abc import Mapping, Sequence

from metagradient.data import Splits
from metagradient.data.own.chosen import write_chosen
from metagradient.descent import Reading, Selection
from metagradient.reporting import Record, figures
from metagradient.studies.examples import examples_figure, identities, labels


def leave(record: Record, splits: Splits, chosen: Selection) -> None:
    """selection.csv, a row for each training example; and, of a file of the user's, the chosen rows as chosen.*."""
    unit = chosen.unit.removesuffix("s")
    header, cells = identities(splits, "train")
    rows = zip(cells, chosen.weights.tolist(), chosen.kept.tolist(), strict=True)
    path = record.csv("selection", [*header, unit, "kept"], ([*own, weight, kept] for own, weight, kept in rows))
    values = chosen.weights.long() if unit == "count" else chosen.weights
    write_chosen(splits, chosen.kept.numpy(), values.numpy(), unit, path.parent)


def draw(
    record: Record, splits: Splits, chosen: Selection, readings: Sequence[Reading], references: Mapping[str, float]
) -> None:
    """weights.png, metasteps.png, most_down_weighted.png."""
    truth = splits.truth
    threshold = float(chosen.weights[chosen.kept].min()) if chosen.kept.any() else None
    wrong = None if truth is None else truth.wrong
    record.figure("weights", figures.weight_histogram(chosen.weights, wrong, threshold=threshold))

    series = {key: [reading.values[key] for reading in readings] for key in readings[0].values}
    record.figure(
        "metasteps",
        figures.metastep_curves(
            [reading.metastep for reading in readings],
            {"steering objective": series["objective"], "held-out loss": series["held_out_loss"]},
            {"held-out accuracy": series["held_out_accuracy"]},
            references=references,
            chosen=chosen.metastep,
        ),
    )

    lowest = chosen.weights.argsort(stable=True)[:12]
    given = labels(splits, splits.train["y"][lowest])
    true = given if truth is None else labels(splits, truth.y[lowest])
    captions = [a if a == b else f"{a} → {b}" for a, b in zip(given, true, strict=True)]
    title = "most down-weighted" + ("" if truth is None else ": given label → true label")
    flags = [a != b for a, b in zip(given, true, strict=True)]
    record.figure(
        "most_down_weighted", examples_figure(splits, splits.train["x"][lowest], captions, flags, title=title)
    )
