"""Figures of results, each a function of plain numbers."""

from metagradient.reporting.figures.common import (
    cost_figure,
    displayable,
    image_grid,
    metastep_curves,
    styled,
    weight_histogram,
)
from metagradient.reporting.figures.examples import Passage, text_figure

__all__ = [
    "Passage",
    "cost_figure",
    "displayable",
    "image_grid",
    "metastep_curves",
    "styled",
    "text_figure",
    "weight_histogram",
]
