"""How fast are the compressors, alone? All of them on the same per-example gradients, interleaved."""

import statistics
from collections.abc import Callable, Iterable
from time import perf_counter

from omegaconf import DictConfig

from metagradient.attribution import ExampleGradients
from metagradient.attribution.gradients.pieces import Piece
from metagradient.attribution.methods.spec import COMPRESSORS
from metagradient.attribution.scoring.rows import Rows
from metagradient.evaluation import take
from metagradient.reporting import Record
from metagradient.studies.attribution.task import Task


def race(record: Record, cfg: DictConfig, task: Task, track: Callable[[list[int], str], Iterable[int]]) -> None:
    """Median seconds, over interleaved repeats, that each compressor takes for the gradients of `race.examples` rows.

    The gradients' factors are ready beforehand, and so is what a compressor draws or fits: this is compression alone.
    """
    gradients, settings = ExampleGradients(task.learner, task.state), cfg.race
    rows = take(task.train, slice(0, settings.examples))  # type: ignore[arg-type]

    def go(examples: Rows) -> Iterable[list[Piece]]:
        return (pieces for batch in examples.batches() for pieces in gradients(batch))

    start = perf_counter()
    ready = list(go(Rows(rows, cfg.batch)))
    taking = perf_counter() - start
    bound, seconds = {}, dict[str, list[float]]()
    for word in settings.methods:
        name, _, k = str(word).partition(":")
        bound[word] = COMPRESSORS[name](int(k)).bind(
            gradients.parameters, task.state.params, lambda: go(Rows(task.train, cfg.batch))
        )
        seconds[word] = []
    for _ in track(list(range(settings.repeats + 1)), "compressors"):  # the first round warms up
        for word, compress in bound.items():
            start = perf_counter()
            for pieces in ready:
                compress(pieces)
            seconds[word].append(perf_counter() - start)
    times = {word: all_[1:] for word, all_ in seconds.items()}
    first = times[settings.methods[0]]
    table = []
    for word, own in times.items():
        ratios = [b / a for a, b in zip(first, own, strict=True)]
        spread = f"{min(ratios):.1f} - {max(ratios):.1f}"
        table.append([word, bound[word].k, statistics.median(own), round(statistics.median(ratios), 2), spread])
        record.result({f"compression_ratio_{str(word).replace(':', '_')}": statistics.median(ratios)})
    columns = [
        "compressor",
        "k",
        f"seconds, {len(next(iter(rows.values())))} examples",
        f"over {settings.methods[0]}",
        "range",
    ]
    record.table("compression_alone", columns, table)
    record.result({"seconds_gradients": taking, "parameters": gradients.size})
