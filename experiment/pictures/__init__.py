"""Pictures of samples and of curves, as PNG and GIF."""

from .curves import (
    save_bound_curve,
    save_classifier_curve,
    save_density,
    save_figure,
    save_learning_curve,
    save_progress,
)
from .grids import array_shape, as_array, film_of, has_picture, image_grid, picture_of, save_film, save_png, scatter
