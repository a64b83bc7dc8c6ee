"""Figures of results, each a function of plain numbers."""

from metagradient.reporting.figures.common import (
    cost_figure,
    displayable,
    image_grid,
    metastep_curves,
    styled,
    weight_histogram,
)

__all__ = ["cost_figure", "displayable", "image_grid", "metastep_curves", "styled", "weight_histogram"]
