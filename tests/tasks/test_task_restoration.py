"""Restoration where the posterior is known, and its figures against what they are by definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models import CircularBlur, Condition, Downsampling, GaussianMixtureScoreModel, Grayscale, Identity, Inpainting
from samplers import make_sampler
from sde_lib import VP
from tasks.restoration import (
    available_methods,
    coverage_of,
    draw_posterior,
    errors_of,
    make_method,
    measure,
    residuals_of,
    restoration_figures,
    restoration_picture,
    restoration_table,
    shown_measurement,
)

_NORMAL = torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
ROOT = torch.eye(8, dtype=torch.float64) + 0.3 * _NORMAL[1, :8]
MEAN, COV = torch.linspace(-0.5, 0.7, 8, dtype=torch.float64), ROOT @ ROOT.T
X0 = (MEAN + _NORMAL[0] @ ROOT.T).view(-1, 1, 2, 4)
OPERATOR = Inpainting((1, 2, 4), hidden="right")


class _Images(GaussianMixtureScoreModel):
    """A Gaussian of 8 numbers as images [1, 2, 4]."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.flatten(1), t)
        return type(answer)(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=answer.sigma)


def _model() -> _Images:
    return _Images(VP(), means=MEAN[None], covs=COV[None])


def _figures(name: str, noise_std: float, sampler: str = "dpm_solver_pp", num_steps: int = 25, **options) -> dict:
    count, sampled = 6, make_sampler(sampler, num_steps=num_steps, grid="log_snr")
    method = make_method(name, operator=OPERATOR, noise_std=noise_std, sampler=sampled, options=options)
    y = measure(OPERATOR, X0, noise_std=noise_std)
    numbers = [(k, j) for k in range(len(X0)) for j in range(count)]
    model = _model() if method.observe is None else method.observe(_model())
    x0 = draw_posterior(method, model, y.repeat_interleave(count, 0), numbers).x0.view(-1, count, 1, 2, 4)
    per_image = errors_of(x0, X0) | coverage_of(x0, X0) | residuals_of(OPERATOR, x0, y)
    return restoration_figures(per_image, num_samples=count, noise_std=noise_std)


def _off(figures: dict, name: str, wanted: float) -> float:
    """The distance of a figure from what it should be, in standard errors."""
    return (figures[name]["value"] - wanted) / figures[name]["stderr"]


def test_of_an_exact_posterior_truth_and_samples_cannot_be_told_apart():
    found = _figures("mmps", 0.4, num_steps=50, iterations=4)
    assert abs(_off(found, "spread_skill", 1)) < 3 and abs(_off(found, "chi2", 1)) < 3
    assert abs(_off(found, "coverage", 5 / 7)) < 3
    # the errors themselves are those of the posterior's covariance
    matrix = OPERATOR.forward(torch.eye(8, dtype=torch.float64).view(8, 1, 2, 4)).T
    var = float(_model().posterior(matrix, X0.new_zeros(4), noise_std=0.4).covs()[0].trace()) / 8
    assert abs(_off(found, "rmse", math.sqrt(2 * var))) < 3
    assert abs(_off(found, "rmse_of_mean", math.sqrt(7 / 6 * var))) < 3
    assert all(figure["stderr"] < 0.03 for figure in found.values())


def test_figures_show_a_method_that_is_wrong():
    # DPS takes E[x0 | x_t] for x0: its samples are too much alike, and here far away
    assert _off(_figures("dps", 0.4), "spread_skill", 1) < -4
    # what is hidden is drawn without a look at y
    assert _off(_figures("replacement", 0.0, "ancestral", 40), "spread_skill", 1) < -4


def test_figures_of_known_arrays():
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(5, 3, 1, 2, 4)), rng.normal(size=(5, 1, 2, 4))
    y = truth[..., :2].reshape(5, 4) + 0.1
    samples, known = torch.from_numpy(x), torch.from_numpy(truth)
    per_image = errors_of(samples, known) | coverage_of(samples, known)
    per_image |= residuals_of(OPERATOR, samples, torch.from_numpy(y))
    found = restoration_figures(per_image, num_samples=3, noise_std=0.5)
    error, of_mean = (x - truth[:, None]) ** 2, (x.mean(1) - truth) ** 2
    inside = (x.min(1) < truth) & (truth < x.max(1))
    residual = (y[:, None] - x[..., :2].reshape(5, 3, 4)) ** 2
    for name, wanted in {
        "rmse": math.sqrt(error.mean()),
        "rmse_of_mean": math.sqrt(of_mean.mean()),
        "spread_skill": math.sqrt(4 / 3 * x.var(1, ddof=1).mean() / of_mean.mean()),
        "coverage": inside.mean(),
        "chi2": residual.mean() / 0.25,
        "residual": math.sqrt(residual.mean()),
    }.items():
        assert found[name]["value"] == pytest.approx(wanted, rel=1e-12), name
    chi2 = residual.mean((1, 2)) / 0.25
    assert found["chi2"]["stderr"] == pytest.approx(chi2.std(ddof=1) / math.sqrt(5))
    assert "coverage, exact: 0.500" in restoration_table(found, "title", num_samples=3, calls="9")


def test_the_error_of_a_ratio_is_that_of_repeated_experiments():
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        # the truth and 4 samples of one law, and so a spread / skill of 1
        x = torch.from_numpy(rng.normal(size=(40, 5, 6)) * rng.exponential(size=(40, 1, 1)))
        per_image = errors_of(x[:, 1:], x[:, 0]) | coverage_of(x[:, 1:], x[:, 0]) | {"residual_ms": x[:, 0, 0] ** 2}
        found.append(restoration_figures(per_image, num_samples=4, noise_std=1.0))
    for name in ("spread_skill", "coverage", "rmse", "rmse_of_mean"):
        values, errors = (np.array([one[name][key] for one in found]) for key in ("value", "stderr"))
        assert errors.mean() == pytest.approx(values.std(), rel=0.2), name
    mean = np.mean([one["spread_skill"]["value"] for one in found])
    assert mean == pytest.approx(1, abs=0.03)
    assert np.mean([one["coverage"]["value"] for one in found]) == pytest.approx(3 / 5, abs=0.01)


def test_grey_levels_that_are_equal_are_counted_for_all_ranks_that_they_may_have():
    rng = np.random.default_rng(2)
    levels = torch.from_numpy(rng.integers(0, 3, (4000, 5, 2)))
    found = coverage_of(levels[:, 1:], levels[:, 0])
    # 5 draws of one law, whatever the ties: 3 of 5 ranks are inside
    assert float(found["inside"].sum() / found["compared"].sum()) == pytest.approx(0.6, abs=0.02)
    assert float(found["compared"].sum()) < levels.shape[0] * 2  # where all five agree nothing is learnt


def test_one_sample_has_no_spread_and_one_image_no_error():
    x = torch.ones(1, 1, 1, 2, 4)
    per_image = errors_of(x, torch.zeros(1, 1, 2, 4)) | coverage_of(x, torch.zeros(1, 1, 2, 4))
    found = restoration_figures(per_image | residuals_of(OPERATOR, x, torch.zeros(1, 4)), num_samples=1, noise_std=0.0)
    assert found["spread_skill"] is None and found["coverage"] is None and found["chi2"] is None
    assert found["rmse"]["value"] == 1 and math.isnan(found["rmse"]["stderr"])
    table = restoration_table(found, "title", num_samples=1, calls="9")
    assert "±" not in table and "chi2" not in table and "rms of y - A x" in table


@pytest.mark.parametrize("name", available_methods())
def test_a_sample_does_not_depend_on_its_batch_mates(name: str):
    method = make_method(name, operator=OPERATOR, noise_std=0.5, sampler=make_sampler("ancestral", num_steps=6))
    y = measure(OPERATOR, X0[:3], noise_std=0.5)
    model = _model() if method.observe is None else method.observe(_model())

    def drawn(numbers: list[tuple[int, int]]) -> Tensor:
        return draw_posterior(method, model, y[[k for k, _ in numbers]], numbers, seed=3).x0

    many = drawn([(k, j) for k in range(3) for j in range(4)])
    some = drawn([(1, 3), (2, 0), (0, 0)])
    torch.testing.assert_close(some, many[[7, 8, 0]], rtol=0, atol=1e-10)
    assert not torch.equal(many[0], many[1])


def test_the_noise_of_a_measurement_is_its_images_own():
    y = measure(OPERATOR, X0[:5], noise_std=0.3, seed=1)
    assert torch.equal(measure(OPERATOR, X0[:2], noise_std=0.3, seed=1), y[:2])
    assert torch.equal(measure(OPERATOR, X0[:5], noise_std=0.0), OPERATOR.forward(X0[:5]))
    noise = measure(OPERATOR, X0, noise_std=0.3) - OPERATOR.forward(X0)
    assert float(noise.std()) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * noise.numel()))


def test_a_class_is_told_beside_the_measurement():
    told = []

    class Listening(_Images):
        def forward(self, x_t, t, *, cond=None):
            told.append(cond)
            return super().forward(x_t, t)

    model = Listening(VP(), means=MEAN[None], covs=COV[None])
    labels, y = torch.tensor([4, 5]), measure(OPERATOR, X0[:2], noise_std=0.5)
    for name in ("ddnm", "replacement"):
        method = make_method(name, operator=OPERATOR, noise_std=0.5, sampler=make_sampler("ddim", num_steps=1))
        observed = model if method.observe is None else method.observe(model)
        draw_posterior(method, observed, y, [(0, 0), (1, 0)], cond=labels)
    assert isinstance(told[0], Condition) and torch.equal(told[0].label, labels) and told[0].measurement is None
    assert torch.equal(told[-1], labels)


def test_measurements_are_shown_as_images():
    x = torch.rand(2, 3, 4, 4)
    gray, blur = Grayscale((3, 4, 4)), CircularBlur((3, 4, 4), std=1.0)
    assert torch.equal(shown_measurement(gray, gray.forward(x)), gray.forward(x).expand(-1, 3, -1, -1))
    assert torch.equal(shown_measurement(blur, blur.forward(x)), blur.forward(x))
    boxes = shown_measurement(down := Downsampling((3, 4, 4)), y := down.forward(x))
    torch.testing.assert_close(boxes, y.repeat_interleave(2, 2).repeat_interleave(2, 3))
    half = Inpainting((3, 4, 4), hidden="left")
    assert torch.equal(shown_measurement(half, half.forward(x)), x * half.mask)


def test_columns_have_labels_and_images_their_places():
    picture = restoration_picture(
        {"truth": np.zeros((2, 8, 8, 1), np.uint8), "mean": np.full((2, 8, 8, 3), 255, np.uint8)}
    )
    assert picture.shape == (16 + 2 * 66 + 2, 2 * 66 + 2, 3)
    assert (picture[20:80, 4:60] == 0).all() and (picture[20:80, 70:130] == 255).all()
    assert len(np.unique(picture[:16, :66])) > 1 and len(np.unique(picture[:16, 66:])) > 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpms", {}, "unknown method 'mpms'; did you mean 'mmps'"),
        ("mmps", {"iteration": 3}, "unknown option of method 'mmps': 'iteration'; did you mean 'iterations'"),
        ("mmps", {"noise_std": 3}, "unknown option of method 'mmps': 'noise_std'"),
        ("mmps", {"iterations": 1.5}, "iterations of method mmps must be of type int, got 1.5"),
        ("dps", {"scale": "much"}, "scale of method dps must be of type float, got 'much'"),
        ("replacement", {"num_resamples": 3}, "unknown option of method 'replacement': 'num_resamples'"),
        ("repaint", {"inner": "ddim"}, "choices: jump_length, num_resamples"),
        ("twisted", {"num_particles": 0}, "num_particles must be at least 1"),
    ],
)
def test_methods_and_options_that_do_not_exist_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message) as refused:
        make_method(
            name, operator=OPERATOR, noise_std=0.1, sampler=make_sampler("ancestral", num_steps=3), options=options
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["dps", "tmpd", "twisted"])
def test_a_method_that_divides_by_the_noise_needs_some(name: str):
    with pytest.raises(ValueError, match=f"method {name} needs noise_std above 0, got 0; set it, or take one of ddnm"):
        make_method(name, operator=OPERATOR, noise_std=0.0, sampler=make_sampler("ancestral", num_steps=3))


@pytest.mark.parametrize(
    ("name", "sampler", "message"),
    [
        ("twisted", "ddim", "method twisted steps as the sampler ancestral does, got DDIMSampler"),
        ("replacement", "probability_flow", "method replacement needs a sampler that steps along a grid, got Prob"),
        ("dps_published", "probability_flow", "method dps_published needs a sampler that steps along a grid"),
        ("repaint", "unipc", "inner must be a sampler of single steps, got UniPCSampler"),
    ],
)
def test_samplers_that_a_method_cannot_use_are_refused(name: str, sampler: str, message: str):
    with pytest.raises(ValueError, match=message):
        make_method(name, operator=Identity((2,)), noise_std=0.1, sampler=make_sampler(sampler, num_steps=3))
