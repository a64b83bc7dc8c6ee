"""Random streams by name: what is drawn from each number that is folded into a seed.

`fold_in(seed, Selection.JUDGE, i)` is a seed of its own: whatever is drawn from it changes nothing that is drawn from another
stream. Numbers are distinct within a story and keep their values, or runs would change.
"""

from enum import IntEnum


class Selection(IntEnum):
    """Streams of the experiment `selection`."""

    HELD_OUT = 1  # which validation rows only choose the metastep
    DESCENT = 2  # the descent: its initialisations, orders and updates
    JUDGE = 3  # retrainings behind each accuracy
    FILTER = 4  # the training whose losses the filter ranks
    TUNER = 5  # retrainings that choose what the filter drops
    RANDOM = 6  # rows chosen at random
    RETRIEVAL = 7  # which pairs stand together where texts are found among others
    PRETRAINING = 8  # what models have read before


class Poisoning(IntEnum):
    """Streams of the experiment `poisoning`."""

    HELD_OUT = 1  # which validation rows only choose the metastep
    DESCENT = 2  # the attack
    VICTIMS = 3  # models trained on the poisons
    SUSPECT = 4  # the training whose losses and gradients the filters look at
    TUNER = 5  # retrainings that choose what the filters drop
    DEFENDER = 8  # the descent on weights of the poisoned rows
    ROWS = 9  # which rows are poisoned


class Schedules(IntEnum):
    """Streams of the experiment `schedule`."""

    HELD_OUT = 1  # which validation rows only choose the metastep
    DESCENT = 2  # the search by metagradients
    REFERENCE = 30  # test losses along the way
    FINALISTS = 31  # trainings that choose among the finalists
    TEST = 32  # trainings behind each test loss


class Metasmoothness(IntEnum):
    """Streams of `smoothness` readings."""

    READING = 6  # the directions and their runs
    ACCURACY = 7  # the training whose accuracy stands beside it
    RUN = 1  # within a reading: initialisation and order of a direction's runs
    DIRECTION = 2  # within a reading: the direction itself


class Attribution(IntEnum):
    """Streams of the experiment `attribution`."""

    REMOVALS = 7  # which rows the retrainings leave out
    MASKS = 8  # masks and projections
    MODELS = 9  # the models that TRAK averages over
    LEAVE_ONE_OUT = 10  # which rows are left out one by one
    RANDOM = 11  # the scores of the method random
    RANDOM_REMOVALS = 12  # which rows are removed beside a query's top ones


class Unlearning(IntEnum):
    """Streams of the experiment `unlearning`."""

    RUN = 1  # initialisation and order of the recorded run
    NOISE = 7  # noise on the model that is handed out
    ADDED = 21  # rows that are added
    DELETED = 22  # rows that are deleted
    STREAM = 23  # rows of a stream of requests
    KLOM_METHOD = 31  # recorded runs whose unlearned models are compared
    KLOM_PERFECT = 32  # other retrained models: the reading of a perfect answer
    KLOM_TRUTH = 33  # retrained models that both are compared with


class Cost(IntEnum):
    """Streams of the experiment `cost`."""

    EXAMPLES = 5  # random inputs and labels


class Intervals(IntEnum):
    """What intervals draw."""

    BOOTSTRAP = 1  # resampled retrainings and queries


class Compression(IntEnum):
    """What compressors of gradients draw."""

    DROPOUT = 1
    FACTOR_DROPOUT = 2
    GAUSSIAN = 3
    FACTOR_GAUSSIAN = 4
    SJLT = 5


class Library(IntEnum):
    """Single draws of the library, each from a seed of its caller."""

    AUGMENTATION = 1  # of a step's batch, beside the losses' own draws
    POISON_ROWS = 11  # which rows an attack may replace
    POISON_NOISE = 12  # the naive attack
    INITIALISATION = 17  # of a routine's learner
    RANDOM_SEARCH = 21  # of schedules
    SCHEDULE_FREE = 22  # its rate and warm-up
    OUTPUT_NOISE = 41  # on an unlearned model
    WEIGHED = 52  # which candidates a metastep weighs
    CANDIDATES = 51  # which candidates stand together in a chunk
    COUNT_MASK = 99  # which counts a metastep may move
