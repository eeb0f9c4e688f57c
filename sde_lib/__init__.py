"""The mathematics of linear diffusions: SDEs, their tables, time grids and noise streams. No networks."""

from .base import MOST_PRIOR_BITS, SDE
from .catalog import available_sdes, make_sde, register_sde, sde_defaults
from .grids import available_grids, check_grid, check_grid_choice, last_noisy_time, make_grid, register_grid
from .learned import GradientSplit, LearnedVP
from .noise import NoiseStreams, derive_seed
from .ode.adams import solve_adams
from .ode.options import Adams, AdaptiveSolver, GridSolver, ODESolver, make_ode_solver
from .ode.solvers import ADAMS, TABLEAUS, NoProgressError, available_ode_solvers
from .points import Point, points_at_log_snr, points_of
from .rectified_flow import RectifiedFlow
from .requirements import check_sde
from .shapes import check_per_sample, combine, expand_like
from .subvp import SubVP
from .tabulated import Tabulated, cosine_betas, ddpm_betas
from .ve import VE
from .vp import VP, CosineVP
