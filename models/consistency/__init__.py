"""Maps from noisy data to the end of the probability flow: networks, and the exact one of 1-D mixtures."""

from .exact import QuantileFlow
from .generator import Generator
from .model import ConsistencyModel
