"""Predictor-corrector sampling (Song et al. 2021, Algorithm 1): one predictor and one corrector, each registered."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from runtime.options import whole_number
from sde_lib import NoiseStreams, Point

from .correctors import Corrector, NoCorrector, make_corrector
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .predictors import NoPredictor, Predictor, make_predictor
from .registry import register_sampler


@register_sampler("predictor_corrector")
class PredictorCorrectorSampler(GridSampler):
    """Predictor-corrector sampling (Song et al. 2021, Algorithm 1).

    From t to s by the predictor, then ``corrector_steps`` of the corrector at s. Their code corrects at t first and
    predicts then, which is the same chain but for its two ends. NFE: (1 + corrector_steps) a step, or 1 for a step onto
    zero noise, plus one with a final denoising; a predictor "none" calls no network.

    Args:
        predictor: A predictor, or the name of one.
        corrector: A corrector, or the name of one.
        corrector_steps: Corrector steps at each noise level, at least 1.
        snr: Size of the steps of a corrector given by name; see ``LangevinCorrector``. None is its own default.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If a name is unknown or a number out of range.
    """

    def __init__(
        self,
        *,
        predictor: str | Predictor = "reverse_diffusion",
        corrector: str | Corrector = "langevin",
        corrector_steps: int = 1,
        snr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.corrector_steps = whole_number("corrector_steps", corrector_steps, fix="corrector='none' takes none")
        self.predictor = predictor if isinstance(predictor, Predictor) else make_predictor(_name(predictor))
        if isinstance(corrector, Corrector):
            if snr is not None:
                raise ValueError("snr is for correctors given by name; set it where the corrector is built")
            self.corrector = corrector
        else:
            self.corrector = make_corrector(_name(corrector), **({} if snr is None else {"snr": snr}))
        if isinstance(self.predictor, NoPredictor) and isinstance(self.corrector, NoCorrector):
            raise ValueError("predictor and corrector are both 'none'; choose one of them")

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Predict, then correct."""
        x = self.predictor.step(denoise, x, t, s, noise)
        if not isinstance(self.corrector, NoCorrector):
            for _ in range(self.corrector_steps):
                x = self.corrector.step(denoise, x, s, noise)
        return x


def _name(value: Any) -> str:
    """The command line reads None where a user writes it for "none"."""
    return "none" if value is None else value
