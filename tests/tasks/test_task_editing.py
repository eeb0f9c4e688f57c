"""Editing against what Gaussians have in closed form: SDEdit, counterfactuals, and gradients through a sampler."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import Tensor, nn

from models import GaussianMixtureScoreModel, GuidedScoreModel, LabelledMixtureScoreModel, Prediction, ScoreModel
from samplers import GridSampler, ProbabilityFlowSampler, make_sampler
from sde_lib import VE, VP, SubVP, Tabulated
from tasks.editing import (
    EditTask,
    TuningOptions,
    available_edit_methods,
    blur_residual,
    change_map,
    few_steps,
    flow_of,
    images,
    invert,
    latents_of,
    localization_figures,
    make_edit_method,
    otsu_threshold,
    sdedit,
    smoothed_map,
    time_of,
    tune,
)
from tasks.latents import progress

SDES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_max=20.0), "ddpm": Tabulated.ddpm()}
EYE = torch.eye(3, dtype=torch.float64)
_ROOT = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COV = 0.2 * _ROOT @ _ROOT.T + 0.05 * EYE
HEALTHY, LESION = torch.tensor([[0.3, -0.4, 0.1], [-0.5, 0.2, 0.6]], dtype=torch.float64)


def _grid_sampler(name: str, **options) -> GridSampler:
    sampler = make_sampler(name, **options)
    assert isinstance(sampler, GridSampler)
    return sampler


def _flow(num_steps: int = 30) -> ProbabilityFlowSampler:
    return ProbabilityFlowSampler(solver="rk4", num_steps=num_steps, grid="log_snr")


def _classes(sde=SDES["vp"]) -> LabelledMixtureScoreModel:
    return LabelledMixtureScoreModel(sde, means=torch.stack([HEALTHY, LESION]), covs=COV.expand(2, 3, 3), labels=[0, 1])


def _alpha_sigma(sde, t: float) -> tuple[float, float]:
    alpha, sigma = (float(one) for one in sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    return alpha, sigma


class _Impulses:
    """Noise of numbers that each have a draw of their own; draw i is 1 in number i and 0 elsewhere."""

    draws = 0

    def __init__(self, *_: object) -> None: ...

    def normal_like(self, x: Tensor) -> Tensor:
        drawn = torch.zeros_like(x)
        drawn[:, _Impulses.draws] = 1
        _Impulses.draws += 1
        return drawn


class _Scalar(GaussianMixtureScoreModel):
    """A Gaussian of one number, for every number of a sample."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.reshape(-1, 1), t.repeat_interleave(x_t[0].numel()))
        return Prediction(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=self.sde.sigma(t))


@pytest.mark.parametrize(("sde", "t"), [("vp", 0.2), ("vp", 0.5), ("vp", 0.9), ("subvp", 0.5), ("ve", 0.6)])
def test_sdedit_of_gaussian_data_has_the_law_in_closed_form(sde: str, t: float, monkeypatch: pytest.MonkeyPatch):
    """By impulses, without Monte-Carlo error, and without the sampler's own in 1 / num_steps."""
    for module in (images, progress):
        monkeypatch.setattr(module, "NoiseStreams", _Impulses)
    var, found = 0.5, []
    for num_steps in (100, 200):
        model = _Scalar(SDES[sde], means=EYE[:1, :1] * 0, covs=var * EYE[None, :1, :1])
        _Impulses.draws = 0
        # number i is moved by the draw i alone, and the last one by y = 1
        y = torch.zeros(1, num_steps + 3, dtype=torch.float64)
        y[0, -1] = 1
        sampler = _grid_sampler("ancestral", num_steps=num_steps, grid="log_snr")
        moved = sdedit(model, sampler, y, t, numbers=[0]).x0[0]
        found.append((float(moved[-1]), float(moved[:-1].square().sum())))
    alpha, sigma = _alpha_sigma(SDES[sde], t)
    k, v = (one / (alpha**2 * var + sigma**2) for one in (alpha * var, var * sigma**2))
    (rough_mean, rough_var), (fine_mean, fine_var) = found
    assert 2 * fine_mean - rough_mean == pytest.approx(k * alpha, abs=2e-3)
    assert 2 * fine_var - rough_var == pytest.approx(k**2 * sigma**2 + v, rel=2e-2)


def test_the_less_noise_the_more_faithful():
    model, y = _classes(), torch.full((64, 3), 2.0, dtype=torch.float64)
    sampler, errors = _grid_sampler("ancestral", num_steps=40), []
    for t in (0.02, 0.1, 0.3):
        edited = sdedit(model, sampler, y, t, numbers=range(64), cond=torch.zeros(64, dtype=torch.int64))
        errors.append(float((edited.x0 - y).square().mean().sqrt()))
    assert errors == sorted(errors) and errors[0] < 0.5 * errors[-1]


@pytest.mark.parametrize(("name", "t"), [("vp", 0.3), ("vp", 1.0), ("subvp", 0.8), ("ve", 0.7), ("ddpm", 1.0)])
def test_a_counterfactual_moves_by_the_difference_of_means_as_far_as_t_leaves_it(name: str, t: float):
    sde, x0 = SDES[name], torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ones = torch.ones(5, dtype=torch.int64)
    edited = invert(_classes(sde), _flow(), x0, t, source=ones, target=0 * ones)
    # the solver starts at the last noisy time, not at 0
    last = next(float(one) for one in _flow().times(sde).flip(0) if sde.sigma(one) > 0)
    low, high = (sigma / alpha for alpha, sigma in (_alpha_sigma(sde, one) for one in (last, t)))
    values, vectors = torch.linalg.eigh(COV)
    kept = vectors @ torch.diag(((values + low**2) / (values + high**2)).sqrt()) @ vectors.T
    expected = (EYE - kept) @ (HEALTHY - LESION)
    torch.testing.assert_close(edited.x0 - x0, expected.expand(5, 3), rtol=0, atol=5e-4)
    torch.testing.assert_close(edited.others["round_trip"], x0, rtol=0, atol=5e-4)
    if t == 1 and name in ("vp", "ddpm"):
        # nothing of the image is left, and the map is the lesion
        torch.testing.assert_close(x0 - edited.x0, (LESION - HEALTHY).expand(5, 3), rtol=0, atol=0.012)


def test_guidance_moves_a_counterfactual_by_its_weight():
    w, t, ones = 3.0, 0.5, torch.ones(4, dtype=torch.int64)
    x0 = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model, reference = _classes(), GaussianMixtureScoreModel(SDES["vp"], means=0 * EYE[:1], covs=COV[None])
    guided = GuidedScoreModel(model, weight=w, reference=reference)
    far = invert(model, _flow(), x0, t, source=ones, target=0 * ones, decoder=guided).x0 - x0
    # of Gaussians of one covariance the guided score is that of the mean 0 + w (m0 - 0)
    values, vectors = torch.linalg.eigh(COV)
    high, last = _ratio(t), _ratio(float(_flow().times(SDES["vp"])[-2]))
    kept = vectors @ torch.diag(((values + last**2) / (values + high**2)).sqrt()) @ vectors.T
    torch.testing.assert_close(far[0], (EYE - kept) @ (w * HEALTHY - LESION), rtol=0, atol=2e-4)


def _ratio(t: float) -> float:
    alpha, sigma = _alpha_sigma(SDES["vp"], t)
    return sigma / alpha


class _Shifted(ScoreModel):
    """The exact score of N(shift, c), with the shift a parameter."""

    def __init__(self, *, var: float = 0.4) -> None:
        super().__init__(SDES["vp"])
        self.shift, self.var = nn.Parameter(torch.tensor([0.2, -0.1], dtype=torch.float64)), var

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        # a nonlinear part, so that activations matter to the gradient
        offset = (x_t - alpha * self.shift) * (1 + 0.1 * torch.sin(self.shift * x_t))
        total = alpha**2 * self.var + sigma**2
        x0 = self.shift + alpha * self.var * offset / total
        return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma, sigma=sigma[:, 0])


@pytest.mark.parametrize(
    "sampler",
    [
        few_steps(SDES["vp"], 0.6, 6),
        make_sampler("ancestral", num_steps=5),
        make_sampler("dpm_solver_pp", num_steps=5),
        ProbabilityFlowSampler(solver="heun", num_steps=4),
    ],
    ids=["ddim", "ancestral", "dpm_solver_pp", "probability_flow"],
)
def test_the_gradient_through_an_unrolled_sampler_is_a_finite_difference(sampler: GridSampler):
    model, x_t = _Shifted(), torch.randn(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    started = sampler.starting_at(model.sde, 0.6)

    def loss(shift: Tensor, start: Tensor = x_t) -> float:
        with torch.no_grad():
            model.shift.copy_(shift)
        noise = images.NoiseStreams(0, range(3))
        return float(started.sample(model, start, noise=noise).x0.pow(3).sum())

    shift, step = model.shift.detach().clone(), 1e-5
    expected = [(loss(shift + step * one) - loss(shift - step * one)) / (2 * step) for one in torch.eye(2).double()]
    assert loss(shift) != 0
    begun = x_t.clone().requires_grad_(True)
    result = started.unroll(model, begun, noise=images.NoiseStreams(0, range(3)))
    result.x0.pow(3).sum().backward()
    assert model.shift.grad is not None and begun.grad is not None
    torch.testing.assert_close(model.shift.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    bump = torch.zeros_like(x_t)
    bump[1, 0] = step
    along = (loss(shift, x_t + bump) - loss(shift, x_t - bump)) / (2 * step)
    assert float(begun.grad[1, 0]) == pytest.approx(along, rel=1e-8, abs=1e-8)
    # what it draws is what sample draws, by as many calls
    drawn = started.sample(model, x_t, noise=images.NoiseStreams(0, range(3)))
    torch.testing.assert_close(result.x0.detach(), drawn.x0, rtol=0, atol=0)
    assert result.nfe == drawn.nfe


class _Mean(ScoreModel):
    """The exact score of N(m, c), with the mean a parameter."""

    def __init__(self, mean: float, *, var: float = 0.4) -> None:
        super().__init__(SDES["vp"])
        self.mean, self.var = nn.Parameter(torch.tensor([mean], dtype=torch.float64)), var

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        x0 = self.mean + alpha * self.var * (x_t - alpha * self.mean) / (alpha**2 * self.var + sigma**2)
        return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma, sigma=sigma[:, 0])


def test_tuning_finds_the_known_optimum():
    model, t, wanted = _Mean(0.0), 0.7, 0.9
    x0 = 0.5 * torch.randn(8, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x_t, nfe = latents_of(model, _flow(20), x0, t)
    down = few_steps(model.sde, t, 6)
    options = TuningOptions(num_updates=120, learning_rate=0.1, batch_size=8, identity_weight=0.0)
    losses: list[float] = []
    tuned = tune(model, down, lambda x: -(x - wanted).square().sum(1), x_t, x0, options=options, progress=losses.append)
    # a step goes from y - m to (1 + (r_s - r_t) r_t / (c + r_t^2)) of it, in y = x / alpha and r = sigma / alpha
    ratios = [_ratio(float(one)) for one in down.times(model.sde)]
    factor = math.prod(1 + (s - r) * r / (model.var + r**2) for r, s in pairwise(ratios))
    y = float((x_t / _alpha_sigma(model.sde, t)[0]).mean())
    assert float(tuned.mean) == pytest.approx((wanted - factor * y) / (1 - factor), abs=3e-3)
    assert float(model.mean.detach()) == 0 and not tuned.mean.requires_grad
    assert losses[-1] < losses[0] and len(losses) == 120 and nfe > 20


def test_the_identity_term_keeps_the_image():
    model, t = _Mean(0.0), 0.7
    x0 = 0.5 * torch.randn(8, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x_t, _ = latents_of(model, _flow(20), x0, t)
    down, kept = few_steps(model.sde, t, 6), []
    for weight in (0.0, 0.5, 5.0):
        options = TuningOptions(num_updates=25, learning_rate=0.1, batch_size=3, identity_weight=weight)
        tuned = tune(model, down, lambda x: -(x - 1).square().sum(1), x_t, x0, options=options)
        kept.append(float((down.sample(tuned, x_t).x0 - x0).abs().mean()))
    assert kept == sorted(kept, reverse=True) and kept[2] < 0.5 * kept[0]


@pytest.mark.parametrize("name", available_edit_methods())
def test_an_image_is_the_same_in_any_batch(name: str):
    x0 = 0.3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    sampler = _flow(10) if name != "sdedit" else _grid_sampler("ancestral", num_steps=8)
    method, model, label = make_edit_method(name), _classes(), torch.tensor([1, 1, 0, 1])
    task = EditTask(x0, 0.5, range(4), label, 1 - label, seed=3)
    together = method.edit(model, model, sampler, task)
    alone = method.edit(model, model, sampler, EditTask(x0[2:3], 0.5, [2], label[2:3], 1 - label[2:3], seed=3))
    torch.testing.assert_close(alone.x0[0], together.x0[2], rtol=0, atol=1e-12)
    for key, other in alone.others.items():
        torch.testing.assert_close(other[0], together.others[key][2], rtol=0, atol=1e-12)
    assert together.nfe > 3 and bool((together.x0 != x0).any())
    with pytest.raises(ValueError, match=r"can start at t in .* got 0;"):
        method.edit(model, model, sampler, EditTask(x0, 0.0, range(4), label, label))


def test_a_noise_level_is_found_at_its_time():
    for sde in SDES.values():
        t = time_of(sde, 0.8)
        alpha, sigma = _alpha_sigma(sde, t)
        assert sigma / alpha == pytest.approx(0.8, rel=1e-6)
    with pytest.raises(ValueError, match=r"sigma / alpha of this SDE lies in \(0.01, 20\], got 30; change it"):
        time_of(SDES["ve"], 30.0)


def test_figures_of_maps_are_scikit_learns_and_their_errors_those_of_repeated_draws():
    rng = np.random.default_rng(0)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        masks = torch.from_numpy(rng.random((count, 6, 6)) < 0.2)
        # images differ in how well the lesion is seen
        seen = torch.from_numpy(rng.random((count, 1, 1)) * 2)
        return masks * seen + torch.from_numpy(rng.random((count, 6, 6))), masks

    maps, masks = drawn(16)
    figures = localization_figures(maps, masks, jackknife=False)
    truth, values = masks.flatten().numpy(), maps.flatten().numpy()
    assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(truth, values))
    assert figures["auprc"]["value"] == pytest.approx(average_precision_score(truth, values))
    best = max(f1_score(truth, values >= cut) for cut in np.quantile(values, np.linspace(0, 0.999, 400)))
    assert figures["dice_best"]["value"] == pytest.approx(best, abs=2e-3)
    assert figures["dice_otsu"]["value"] == pytest.approx(f1_score(truth, values > otsu_threshold(values)))
    repeated = [localization_figures(*drawn(16), jackknife=False) for _ in range(60)]
    jackknifed = [localization_figures(*drawn(16)) for _ in range(6)]
    for name in ("auroc", "auprc", "dice_best", "dice_otsu"):
        spread = np.std([one[name]["value"] for one in repeated], ddof=1)
        assert np.mean([one[name]["stderr"] ** 2 for one in jackknifed]) ** 0.5 == pytest.approx(spread, rel=0.35)
    perfect = localization_figures(masks.double(), masks)
    assert all(one == {"value": 1.0, "stderr": 0.0} for one in perfect.values())
    with pytest.raises(ValueError, match="masks must be those of the maps, with pixels of lesions and others"):
        localization_figures(maps, torch.zeros_like(masks))


def test_otsus_threshold_parts_two_heaps():
    heaps = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2])
    assert otsu_threshold(heaps) == 0.2
    # the least variance within the sides, of all cuts
    values = np.random.default_rng(1).gamma(1.5, size=200)
    cuts = np.sort(values)[:-1]
    within = [sum(len(side) * side.var() for side in (values[values <= c], values[values > c])) for c in cuts]
    assert otsu_threshold(values) == cuts[int(np.argmin(within))]
    assert otsu_threshold(np.ones(4)) == 1


def test_maps_sum_over_channels_and_flat_images_have_no_blur_residual():
    x0, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(change_map(x0, other), (x0 - other).abs().sum(1))
    assert float(blur_residual(torch.full((1, 3, 8, 8), 0.4)).abs().max()) < 1e-6
    spot = torch.zeros(1, 1, 9, 9)
    spot[0, 0, 4, 4] = 1
    assert int(blur_residual(spot).flatten().argmax()) == 40
    # a kernel of sum 1, as wide as it says
    smooth = smoothed_map(spot[0].double(), std=1.2)[0]
    rows = torch.arange(9.0, dtype=torch.float64)
    var = float((smooth.sum(1) * (rows - 4) ** 2).sum())
    assert float(smooth.sum()) == pytest.approx(1) and var == pytest.approx(1.44, rel=0.02)


def test_a_map_is_smoothed_with_mirrored_rims_so_that_one_rim_says_nothing_of_the_other():
    spot = torch.zeros(1, 8, 8, dtype=torch.float64)
    spot[0, 0, 3] = 1
    smooth, weights = smoothed_map(spot, std=0.5)[0], np.exp(-2.0 * np.arange(-3, 4) ** 2)
    weights /= weights.sum()
    # what would fall off comes back: rows -1, -2, -3 are rows 0, 1, 2
    rows = np.zeros(8)
    rows[:4] = weights[3:]
    rows[:3] += weights[4:]
    columns = np.zeros(8)
    columns[:7] = weights
    np.testing.assert_allclose(smooth, np.outer(rows, columns), rtol=0, atol=1e-6)
    assert float(smooth.sum()) == pytest.approx(1) and float(smooth[-1].abs().max()) == 0
    residual = blur_residual(spot[:, None], std=1)[0]
    assert float(residual[-1].max()) == 0 and float(residual[0, 3]) == pytest.approx(float(residual.max()))


def test_input_that_cannot_be_says_so_in_one_line():
    for name, options, said in [
        ("sdeditt", {}, "unknown edit method 'sdeditt'; did you mean 'sdedit'"),
        ("invert", {"own_clas": True}, "unknown option of edit method 'invert': 'own_clas'; did you mean 'own_class'"),
        ("invert", {"own_class": 3}, "own_class of edit method invert must be of type bool, got 3"),
        ("finetune", {"steps": 0}, "steps must be at least 2, a whole number, got 0; set 6"),
        ("finetune", {"learning_rate": 0.0}, r"learning_rate must lie in \(0, 1\)"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            make_edit_method(name, options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="invert takes images up to noise by the probability flow, got DDIM"):
        flow_of("invert", make_sampler("ddim", num_steps=3))
