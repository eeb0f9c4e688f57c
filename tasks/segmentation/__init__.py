"""Segmentation by ensembles: masks drawn from p(mask | image), and how good they are."""

from .metrics import (
    calibration_of,
    dice,
    ged2_of,
    iou,
    overlaps_of,
    segmentation_figures,
    segmentation_table,
    spread_of,
)
