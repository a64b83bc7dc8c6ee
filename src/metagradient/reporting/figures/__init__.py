"""Figures of results, each a function of plain numbers."""

from metagradient.reporting.figures.cost import cost_figure
from metagradient.reporting.figures.examples import Passage, text_figure
from metagradient.reporting.figures.images import displayable, image_grid
from metagradient.reporting.figures.style import styled
from metagradient.reporting.figures.weights import metastep_curves, weight_histogram

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
