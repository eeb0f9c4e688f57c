"""Editing: noise and back, another condition, maps of what is not healthy, and weights tuned towards a score."""

from .finetuning import ClassScore, ImageScore, TuningOptions, few_steps, latents_of, recognized, tune
from .images import Edited, invert, reconstruct, sdedit, time_of
from .localization import (
    blur_residual,
    change_map,
    localization_figures,
    localization_table,
    mean_square_change,
    otsu_threshold,
    smoothed_map,
)
from .methods import (
    Counterfactual,
    EditMethod,
    EditTask,
    FineTuning,
    available_edit_methods,
    flow_of,
    make_edit_method,
    register_edit_method,
)
