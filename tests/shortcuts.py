"""Shortcuts of small runs, much of whose time is pictures of curves, waits for the disk, and digits read from text."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import sklearn.datasets
from matplotlib.figure import Figure

from experiment.pictures import curves
from runtime.files import write_atomically

draw_figure = curves.save_figure


def _sketch(path: Path, figure: Figure) -> None:
    """Write the numbers of a figure in place of its picture."""
    lines = [line.get_xydata() for axes in figure.axes for line in axes.lines]
    write_atomically(path, json.dumps([[list(map(float, point)) for point in line] for line in lines]).encode())


def take_shortcuts(patch: pytest.MonkeyPatch) -> None:
    """Take them until the patch is undone. What fsync is called with, and when, is tested by its own tests."""
    patch.setattr(curves, "save_figure", _sketch)
    patch.setattr(os, "fsync", os.fstat)
    patch.setattr(sklearn.datasets, "load_digits", cache(sklearn.datasets.load_digits))
