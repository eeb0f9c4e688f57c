"""Text encoders: what makes tokens of captions."""

from .words import WordEncoder
