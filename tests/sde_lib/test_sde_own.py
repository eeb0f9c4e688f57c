"""An SDE of one's own is refused where its models could be trained, but not sampled or measured."""

import math

import pytest
import torch

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound
from models import GaussianMixtureScoreModel
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams, available_sdes, check_sde, make_sde


class RectifiedFlow(SDE):
    """alpha = 1 - t, sigma = t."""

    prior_std = 1.0

    def log_alpha(self, t):
        return torch.log1p(-t.double())

    def log_sigma(self, t):
        return t.double().log()


class Cosine(RectifiedFlow):
    """Rounding leaves alpha(1) = 6e-17."""

    def log_alpha(self, t):
        return torch.cos(0.5 * math.pi * t.double()).log()

    def log_sigma(self, t):
        return torch.sin(0.5 * math.pi * t.double()).log()


class Mended(RectifiedFlow):
    t_max = 0.999


class NoPrior(Mended):
    prior_std = None


class FromZero(Mended):
    t_min = 0.0


class Beyond(RectifiedFlow):
    t_max = 1.5


class Flat(Mended):
    def log_sigma(self, t):
        return t.double().clamp(max=0.5).log() + 0.0 * t

    def log_alpha(self, t):
        return 0.0 * t.double()


class WrongPrior(Mended):
    """A forgotten scale."""

    def log_sigma(self, t):
        return (50 * t.double()).log()


class WrongShape(Mended):
    def log_alpha(self, t):
        return torch.zeros(1, dtype=torch.float64)


class NoRows(Mended):
    table_size = 0


class Unfinished(Mended):
    def log_alpha(self, t):
        raise NotImplementedError("to do")


@pytest.mark.parametrize(
    ("sde", "words"),
    [
        (RectifiedFlow(), ["RectifiedFlow has alpha = 0 at its t_max = 1", "set t_max", "t_max = 0.999"]),
        (Cosine(), ["Cosine has alpha = 6.1e-17 at its t_max = 1", "t_max = 0.999"]),
        (NoPrior(), ["NoPrior needs prior_std", "got None"]),
        (FromZero(), ["sigma = 0 at its t_min = 0", "t_min = 1e-05"]),
        (Beyond(), ["t_max <= 1", "1.5"]),
        (Flat(), ["falls from t_min to t_max", "at t = 0.5"]),
        (WrongPrior(), ["prior_std = 1,", "sigma is 49.95"]),
        (WrongShape(), ["one number a time", "log_alpha [1]"]),
        (NoRows(), ["NoRows needs table_size", "at least 1, got 0"]),
        (Unfinished(), ["Unfinished fails at its times", "NotImplementedError: to do"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_work_is_refused_with_its_cure(sde, words):
    with pytest.raises(ValueError) as caught:
        check_sde(sde)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(available_sdes()) - {"betas"}))
def test_ours_pass(name):
    check_sde(make_sde(name))


def test_every_sde_of_these_tests_passes(sde):
    check_sde(sde)


def test_what_the_cure_gives_is_sampled_and_measured():
    check_sde(Mended())
    model = GaussianMixtureScoreModel(Mended(), means=torch.zeros(1, 1), covs=torch.full((1, 1, 1), 0.25))
    noise = NoiseStreams(0, range(400))
    sampler = make_sampler("heun", num_steps=40, grid="log_snr")
    x0 = sampler.sample(model, sampler.prior_sample(model.sde, (1,), noise), noise=noise).x0
    assert float(x0.std()) == pytest.approx(0.5, rel=5 / math.sqrt(800))
    assert float(model.sde.prior_bits_per_dim()) < 1e-4


def test_what_is_measured_or_sampled_all_the_same_says_what_to_lower():
    model = GaussianMixtureScoreModel(RectifiedFlow(), means=torch.zeros(1, 1), covs=torch.ones(1, 1, 1))
    x0 = torch.ones(2, 1)
    for estimator in (VariationalBound(num_levels=2), ContinuousBound(num_levels=2), FlowLikelihood(num_levels=2)):
        with pytest.raises(ValueError, match=r"alpha is 0; set t_max of RectifiedFlow lower, such as 0\.999"):
            estimator(model, x0)
    for name in ("heun", "unipc", "dpm_solver_pp", "probability_flow", "euler_maruyama"):
        with pytest.raises(
            ValueError, match=r"begin the grid at sde\.t_max, and if that is here, set it lower, such as 0\.999"
        ):
            make_sampler(name, num_steps=5).sample(model, x0)
