"""Restoration: samples of p(x0 | y), where y = A x0 + noise was measured, by any method and sampler."""

from .draws import draw_posterior, measure, shown_measurement
from .methods import RestorationMethod, available_methods, make_method
from .metrics import coverage_of, errors_of, residuals_of, restoration_figures, restoration_table
from .picture import restoration_picture
