"""Dynamic thresholding of the predicted x0."""

import math

import numpy as np
import pytest
import torch

from models import ClippedScoreModel, Prediction, ScoreModel, ThresholdedScoreModel, count_network_calls
from models.wrappers.clipping import quantile_per_sample
from sde_lib import VP, expand_like, make_sde

TIMES = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)


class Says(ScoreModel):
    """A model that always predicts the same x0."""

    def __init__(self, x0, sde=None):
        super().__init__(sde or VP())
        self.x0 = x0

    def forward(self, x_t, t, *, cond=None):
        return Prediction.from_x0(x_t, self.x0, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))


def thresholded(x0, **options):
    """x0 after thresholding."""
    t = torch.full((len(x0),), 0.4, dtype=torch.float64)
    return ThresholdedScoreModel(Says(x0), **options)(torch.zeros_like(x0), t).x0


@pytest.mark.parametrize(
    ("options", "x0", "expected"),
    [
        # the order statistic of rank 3 of 0..4: s = 3
        ({"quantile": 0.75}, [0, -1, 2, -3, 4], [0, -1 / 3, 2 / 3, -1, 1]),
        # rank 3.6 lies between 3 and 4: s = 3.6
        ({"quantile": 0.9}, [0, -1, 2, -3, 4], [0, -1 / 3.6, 2 / 3.6, -3 / 3.6, 1]),
        ({"quantile": 1.0}, [0, -1, 2, -3, 4], [0, -0.25, 0.5, -0.75, 1]),
        ({"quantile": 1.0, "max_scale": 2.0}, [0, -1, 2, -3, 4], [0, -0.5, 1, -1, 1]),
        # s = 0.5 is raised to 1: what is left is clipping
        ({"quantile": 0.25}, [0.5, -0.5, 2, -3, 4], [0.5, -0.5, 1, -1, 1]),
        # centre 4 and half width 2: distances 0, 1, 3, 5, 6 in those are 0, 0.5, 1.5, 2.5, 3, and s = 2.5
        ({"quantile": 0.75, "low": 2.0, "high": 6.0}, [4, 3, 7, -1, 10], [4, 3.6, 5.2, 2, 6]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_form(options, x0, expected, dtype):
    # the second sample is the first one's pixels in another order and shape
    x0 = torch.tensor([x0, x0[::-1]], dtype=dtype).reshape(2, 1, 5, 1)
    expected = torch.tensor([expected, expected[::-1]], dtype=dtype).reshape(2, 1, 5, 1)
    torch.testing.assert_close(thresholded(x0, **options), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("sde_name", ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"])
def test_x0_lies_in_range_and_x_t_holds_together(sde_name):
    sde, generator = make_sde(sde_name), torch.Generator().manual_seed(0)
    x_t, x0 = 3 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    after = ThresholdedScoreModel(Says(x0, sde), low=-0.5, high=2.0, quantile=0.9)(x_t, TIMES)
    scale = np.quantile((x0 - 0.75).abs().flatten(1).numpy(), 0.9, axis=1) / 1.25
    assert (scale > 1).all()
    expected = 0.75 + (x0.flatten(1) - 0.75) / torch.from_numpy(scale)[:, None]
    torch.testing.assert_close(after.x0.flatten(1), expected.clamp(-0.5, 2.0), rtol=1e-13, atol=1e-13)
    # the largest tenth of each sample, and no more, is at the ends
    at_ends = ((after.x0 == -0.5) | (after.x0 == 2.0)).flatten(1).sum(1)
    assert at_ends.tolist() == [2, 2, 2]
    assert float(after.x0.min()) >= -0.5 and float(after.x0.max()) <= 2.0
    alpha, sigma = expand_like(sde.alpha(TIMES), x_t), expand_like(sde.sigma(TIMES), x_t)
    torch.testing.assert_close(alpha * after.x0 + sigma * after.eps, x_t, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(after.score, -after.eps / sigma)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.1)])
def test_what_lies_in_the_range_is_left_to_the_bit_and_outliers_are_clipped(low, high, dtype):
    x0 = low + (high - low) * torch.rand(3, 400, generator=torch.Generator().manual_seed(0))
    x0 = x0.to(dtype).clamp(low, high)
    after = thresholded(x0, low=low, high=high)
    assert after.dtype == dtype and torch.equal(after, x0)
    # one pixel in 400 is above the 0.995 quantile: as if clipped
    x0[:, 7] = 30.0
    assert torch.equal(thresholded(x0, low=low, high=high), x0.clamp(low, high))
    x0 = 5 * x0
    assert torch.equal(thresholded(x0, low=low, high=high, max_scale=1.0), x0.clamp(low, high))
    assert not torch.equal(thresholded(x0, low=low, high=high), x0.clamp(low, high))


def test_no_sample_depends_on_its_batch_mates():
    x0 = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 2, 30, 1e6]).reshape(
        4, 1, 1, 1
    )
    together = thresholded(x0)
    for index in ([0], [2, 1], [3, 2, 1, 0]):
        assert torch.equal(thresholded(x0[index]), together[index])


def test_it_passes_on_what_it_does_not_change():
    class Learned(ScoreModel):
        def forward(self, x_t, t, *, cond=None):
            self.cond = cond
            return Prediction(x0=x_t, eps=x_t, sigma=self.sde.sigma(t), variance_fraction=0.3 * torch.ones_like(x_t))

    model, x, cond = Learned(VP()), 5 * torch.randn(3, 2), torch.tensor([1, 2, 3])
    before = x.clone()
    wrapped = ThresholdedScoreModel(model)
    assert wrapped.sde is model.sde
    assert torch.equal(wrapped(x, TIMES, cond=cond).variance_fraction, 0.3 * torch.ones(3, 2))
    assert model.cond is cond
    # the model's own x0, here its input too, is not written to
    assert torch.equal(x, before)


class Guided(ScoreModel):
    """Classifier-free guidance (Ho & Salimans 2022): eps = eps_without + scale (eps_with - eps_without)."""

    def __init__(self, model, scale):
        super().__init__(model.sde)
        self.model, self.scale = model, scale

    def forward(self, x_t, t, *, cond=None):
        without, conditional = self.model(x_t, t), self.model(x_t, t, cond=cond)
        eps = without.eps + self.scale * (conditional.eps - without.eps)
        return Prediction.from_eps(x_t, eps, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))


class Conditional(ScoreModel):
    """Data near 0 without a condition, near a pattern times the condition with one."""

    pattern = torch.linspace(-1, 1, 200, dtype=torch.float64)

    def forward(self, x_t, t, *, cond=None):
        x0 = torch.zeros_like(x_t) if cond is None else expand_like(cond, x_t) * self.pattern
        return Prediction.from_x0(x_t, x0, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))


@pytest.mark.parametrize("sde_name", ["vp", "ve", "ddpm"])
def test_it_undoes_the_saturation_of_guidance(sde_name):
    model = Guided(Conditional(make_sde(sde_name)), scale=8.0)
    x_t = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cond = torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64)
    wrapped = ThresholdedScoreModel(model, quantile=1.0)
    with count_network_calls(wrapped) as counter:
        after = wrapped(x_t, TIMES, cond=cond)
    assert counter.calls == 2
    # guidance makes 8 times the pattern of it
    pattern = Conditional.pattern
    expected = torch.stack([pattern, pattern, 0.08 * pattern])
    torch.testing.assert_close(after.x0, expected, rtol=1e-9, atol=1e-9)
    # clipping leaves seven eighths, and three quarters, of the pixels at the ends
    clipped = ClippedScoreModel(model)(x_t, TIMES, cond=cond)
    assert (clipped.x0.abs() == 1).sum(1).tolist() == [176, 150, 0]
    alpha, sigma = expand_like(model.sde.alpha(TIMES), x_t), expand_like(model.sde.sigma(TIMES), x_t)
    torch.testing.assert_close(alpha * after.x0 + sigma * after.eps, x_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("columns", [1, 2, 3, 201, 1000])
def test_the_quantile_is_that_of_torch(columns, quantile):
    values = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    values[1] = values[1, 0]  # ties
    expected = torch.quantile(values, quantile, dim=1)
    torch.testing.assert_close(quantile_per_sample(values, quantile), expected, rtol=1e-13, atol=1e-13)


def test_a_batch_of_large_images():
    # 2^24 values in all are where torch.quantile gives up
    x0 = torch.randn(6, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    x0 *= torch.arange(1.0, 7.0).reshape(6, 1, 1, 1)
    assert x0.numel() > 2**24
    after = thresholded(x0)
    for k in (0, 5):
        scale = np.quantile(x0[k].abs().double().numpy(), 0.995)
        expected = (x0[k] / scale).clamp(-1, 1)
        torch.testing.assert_close(after[k], expected, rtol=1e-6, atol=1e-6)


def test_a_number_that_is_not_finite_stays_so():
    # for the samplers, which name the step at which it came up
    x0 = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    x0[1, 3] = math.nan
    found = thresholded(x0)
    assert bool(found[1].isnan().all()) and torch.equal(found[::2], thresholded(x0[::2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": -1.0}, "low must be below high, got 1.0 and -1.0; swap them"),
        ({"high": math.inf}, "low and high must be finite, got -1.0 and inf; pass the data's range"),
        ({"quantile": 0.0}, "quantile must lie in (0, 1], got 0.0; 0.995 is usual"),
        ({"quantile": 99.5}, "quantile must lie in (0, 1], got 99.5; 0.995 is usual"),
        ({"quantile": math.nan}, "quantile must lie in (0, 1], got nan; 0.995 is usual"),
        ({"max_scale": 0.5}, "max_scale must be at least 1, got 0.5; leave it out for no limit"),
        ({"max_scale": math.nan}, "max_scale must be at least 1, got nan; leave it out for no limit"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError) as caught:
        ThresholdedScoreModel(Says(torch.zeros(1, 2)), **options)
    assert str(caught.value) == message
