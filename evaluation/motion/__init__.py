"""Clips of moving digits, read from their pixels: the way that a digit takes, and whether it stays the same one."""

from .identity import DigitReader, train_digit_reader
from .tracks import centred, path_residual, tracks_of
