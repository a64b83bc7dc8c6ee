"""The task of whatever `data=` names."""

from omegaconf import DictConfig

from metagradient.data import PairSplits, TextSplits
from metagradient.studies import setup
from metagradient.studies.selection.labelled import labelled
from metagradient.studies.selection.pairs import pairs
from metagradient.studies.selection.task import Task
from metagradient.studies.selection.texts import texts


def make_task(cfg: DictConfig) -> Task:
    """By the kind of the data set."""
    splits = setup.data(cfg)
    if isinstance(splits, PairSplits):
        return pairs(cfg, splits)
    return texts(cfg, splits) if isinstance(splits, TextSplits) else labelled(cfg, splits)
