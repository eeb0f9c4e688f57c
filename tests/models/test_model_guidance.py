"""Guidance: what it gives against closed forms, its bits at weights 0 and 1, its network calls and its refusals."""

import math

import pytest
import torch
from thinning import only
from torch import Tensor

from models import (
    CFGPlusPlusWeight,
    ClassifierGuidedScoreModel,
    Condition,
    EpsParameterization,
    GaussianMixtureScoreModel,
    GuidedScoreModel,
    LabelledMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    ScoreModel,
    count_network_calls,
)
from models.backbones import MLP
from proofs.checked import times_of
from samplers import make_sampler
from sde_lib import VE, VP, NoiseStreams, Tabulated, expand_like, make_sde, points_of

SDES = ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"]
TIMES = torch.tensor([0.01, 0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, 1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(sde_name: str = "vp", *, spread: float = 1.0) -> LabelledMixtureScoreModel:
    factors = spread * draw(3, 3, 3, seed=1)
    return LabelledMixtureScoreModel(
        make_sde(sde_name), means=draw(3, 3), covs=factors @ factors.mT, labels=[0, 1, 1], weights=[0.3, 0.5, 0.2]
    )


def same(a: Prediction, b: Prediction) -> bool:
    return torch.equal(a.x0, b.x0) and torch.equal(a.eps, b.eps)


class Fractions(ScoreModel):
    """The mixture, with a variance fraction that tells its labels apart."""

    def __init__(self) -> None:
        super().__init__(VP())
        self.inner = [mixture()]

    def forward(self, x_t, t, *, cond=None):
        assert isinstance(cond, Tensor)
        answer = self.inner[0](x_t, t, cond=cond)
        return Prediction(answer.x0, answer.eps, answer.sigma, expand_like(cond.double(), x_t).expand_as(x_t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sde_name", ["vp", "ve"])
def test_weight_1_is_the_model_and_weight_0_its_null_condition_to_the_bit(sde_name: str, dtype: torch.dtype):
    model, x_t = mixture(sde_name), draw(5, 3, seed=2).to(dtype)
    null = torch.full((5,), -1)
    for cond in (LABELS, Condition(label=LABELS)):
        for rescale in (0.0, 0.7):
            with count_network_calls(model) as counter:
                assert same(
                    GuidedScoreModel(model, rescale=rescale)(x_t, TIMES, cond=cond), model(x_t, TIMES, cond=cond)
                )
            assert counter.calls == 2  # one of them is the comparison's
        assert same(GuidedScoreModel(model, weight=0.0)(x_t, TIMES, cond=cond), model(x_t, TIMES, cond=null))
    assert same(GuidedScoreModel(model, weight=0.0, reference=mixture(sde_name, spread=2.0))(x_t, TIMES, cond=LABELS),
                mixture(sde_name, spread=2.0)(x_t, TIMES, cond=LABELS))  # fmt: skip


@pytest.mark.parametrize("sde_name", SDES)
def test_x0_and_eps_are_both_extrapolated_and_agree(sde_name: str):
    model, sde = mixture(sde_name), make_sde(sde_name)
    x_t = sde.perturb(draw(5, 3, seed=3), TIMES, draw(5, 3, seed=4))
    told, untold = model(x_t, TIMES, cond=LABELS), model(x_t, TIMES)
    alpha, sigma = sde.alpha(TIMES)[:, None], sde.sigma(TIMES)[:, None]
    for rescale in (0.0, 0.7):
        guided = GuidedScoreModel(model, weight=3.0, rescale=rescale)(x_t, TIMES, cond=LABELS)
        x0 = untold.x0 + 3 * (told.x0 - untold.x0)
        factor = rescale * told.x0.std(1) / x0.std(1) + 1 - rescale
        torch.testing.assert_close(guided.x0, factor[:, None] * x0)
        torch.testing.assert_close(alpha * guided.x0 + sigma * guided.eps, x_t, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        GuidedScoreModel(model, weight=3.0)(x_t, TIMES, cond=LABELS).eps, 3 * told.eps - 2 * untold.eps
    )


@pytest.mark.parametrize("t", [1e-5, 0.999999])
def test_digits_are_kept_at_both_ends_of_time(t: float):
    """In float32, where (x_t - alpha x0) / sigma and (x_t - sigma eps) / alpha would lose theirs."""
    model, times = mixture("vp_cosine"), torch.full((5,), t, dtype=torch.float64)
    x_t = model.sde.perturb(draw(5, 3, seed=3), times, draw(5, 3, seed=4)).float()
    exact, found = (GuidedScoreModel(model, weight=3.0)(x, times, cond=LABELS) for x in (x_t.double(), x_t))
    for ours, theirs in ((found.x0, exact.x0), (found.eps, exact.eps)):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_an_image_of_one_value_has_no_spread_to_scale():
    flat = GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 3), covs=torch.zeros(1, 3, 3))
    guided = GuidedScoreModel(flat, weight=3.0, rescale=0.7)(draw(5, 3), TIMES, cond=LABELS)
    assert not bool(guided.x0.any()) and bool(guided.eps.isfinite().all())


def test_outside_the_interval_there_is_no_guidance_and_no_second_call():
    model, x_t = mixture(), draw(5, 3, seed=2)
    ratios = (-0.5 * model.sde.log_snr(TIMES)).exp()
    guided = GuidedScoreModel(model, weight=4.0, interval=(float(ratios[1]) * 1.0001, float(ratios[3]) * 1.0001))
    assert guided.weights(TIMES).tolist() == [1, 1, 4, 4, 1]
    with count_network_calls(guided) as counter:
        mixed = guided(x_t, TIMES, cond=LABELS)
        assert counter.calls == 2
        alone = [guided(x_t[k : k + 1], TIMES[k : k + 1], cond=LABELS[k : k + 1]) for k in range(5)]
        assert counter.calls == 2 + 5 + 2
    plain = model(x_t, TIMES, cond=LABELS)
    outside = torch.tensor([0, 1, 4])
    assert torch.equal(mixed.x0[outside], plain.x0[outside]) and torch.equal(mixed.eps[outside], plain.eps[outside])
    for k, one in enumerate(alone):
        torch.testing.assert_close(one.eps[0], mixed.eps[k], rtol=1e-12, atol=1e-12)


def test_a_sampler_counts_two_calls_where_two_run():
    model, sampler = mixture(), make_sampler("ddim", num_steps=10, grid="log_snr")
    times, x_T = times_of(sampler, model.sde), draw(5, 3)
    edge = points_of(model.sde, times)[4].noise_ratio * 1.0001
    results = [
        sampler.sample(GuidedScoreModel(model, weight=3.0, interval=interval), x_T, cond=LABELS)
        for interval in ((0.0, math.inf), (0.0, edge), (edge, math.inf))
    ]
    assert [result.nfe for result in results] == [20, 16, 14]
    assert sampler.sample(GuidedScoreModel(model), x_T, cond=LABELS).nfe == 10


def test_the_variance_fraction_is_the_conditional_one():
    guided = GuidedScoreModel(Fractions(), weight=3.0)(draw(5, 3), TIMES, cond=LABELS)
    assert guided.variance_fraction is not None and guided.variance_fraction[:, 0].tolist() == LABELS.tolist()
    # at weight 0 the model is the unconditional one, to its variance
    null = GuidedScoreModel(Fractions(), weight=0.0)(draw(5, 3), TIMES, cond=LABELS)
    assert null.variance_fraction is not None and null.variance_fraction[:, 0].tolist() == [-1] * 5


def test_autoguidance_tells_the_reference_the_same_condition():
    good, bad, x_t = mixture(), mixture(spread=1.5), draw(5, 3, seed=2)
    guided = GuidedScoreModel(good, weight=2.0, reference=bad)(x_t, TIMES, cond=LABELS)
    expected = 2 * good(x_t, TIMES, cond=LABELS).eps - bad(x_t, TIMES, cond=LABELS).eps
    torch.testing.assert_close(guided.eps, expected)
    # a model without a condition can be guided so too
    guided = GuidedScoreModel(good, weight=2.0, reference=bad)(x_t, TIMES)
    torch.testing.assert_close(guided.x0, 2 * good(x_t, TIMES).x0 - bad(x_t, TIMES).x0)


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_ddim_by_the_weights_of_cfgpp_is_cfgpp(sde_name: str, scale: float):
    model, sampler = mixture(sde_name), make_sampler("ddim", num_steps=12, grid="karras")
    times = times_of(sampler, model.sde)
    x = x_T = model.sde.prior_std * draw(5, 3, seed=5)
    guided = GuidedScoreModel(model, weight=CFGPlusPlusWeight(scale, times))
    found = sampler.sample(guided, x_T, cond=LABELS)
    points = points_of(model.sde, times)
    # Chung et al. 2024, Algorithm 2; onto zero noise, or to predict x0 where noise is left, it is x0_lambda
    for t, (alpha, sigma) in zip(points, [(s.alpha, s.sigma) for s in points[1:]] + [(1.0, 0.0)], strict=True):
        if t.sigma == 0:
            break
        told, untold = model(x, t.times_for(x), cond=LABELS), model(x, t.times_for(x))
        x = alpha * (untold.x0 + scale * (told.x0 - untold.x0)) + sigma * untold.eps
    torch.testing.assert_close(found.x0, x, rtol=1e-10, atol=1e-10)


def test_weights_of_cfgpp_are_those_of_the_step_that_crosses_t():
    sde, times = VP(), torch.tensor([1.0, 0.6, 0.2, 0.0])
    r = [point.noise_ratio for point in points_of(sde, times)]
    weight = CFGPlusPlusWeight(0.5, times)
    t = torch.tensor([1.0, 0.7, 0.6, 0.2, 0.1], dtype=torch.float64)
    first, second = 0.5 * r[0] / (r[0] - r[1]), 0.5 * r[1] / (r[1] - r[2])
    torch.testing.assert_close(weight(sde, t), torch.tensor([first, first, second, 0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("sde_name", SDES)
def test_the_unconditional_score_and_the_exact_class_gradient_are_the_conditional_score(sde_name: str):
    exact = mixture(sde_name)
    plain = GaussianMixtureScoreModel(exact.sde, means=exact.means, covs=exact.covs(), weights=exact.log_weights.exp())
    guided = ClassifierGuidedScoreModel(plain, exact)
    x_t = exact.sde.perturb(draw(5, 3, seed=3), TIMES, draw(5, 3, seed=4))
    with torch.no_grad():
        found, expected = guided(x_t, TIMES, cond=LABELS), exact(x_t, TIMES, cond=LABELS)
    assert not found.x0.requires_grad and not found.eps.requires_grad
    torch.testing.assert_close(found.eps, expected.eps, rtol=1e-12, atol=1e-12)
    # the gradient of NCSN's and VE's last levels is tiny, and multiplied by sigma^2
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-10, atol=1e-10)


def test_classifier_guidance_leaves_out_label_minus_1_and_what_is_outside_the_interval():
    exact, x_t = mixture(), draw(5, 3, seed=2)
    plain = GaussianMixtureScoreModel(exact.sde, means=exact.means, covs=exact.covs(), weights=exact.log_weights.exp())
    label = torch.tensor([0, -1, 1, 1, -1])
    ratios = (-0.5 * exact.sde.log_snr(TIMES)).exp()
    guided = ClassifierGuidedScoreModel(plain, exact, scale=3.0, interval=(0.0, float(ratios[2]) * 1.0001))
    found, unguided = guided(x_t, TIMES, cond=label), plain(x_t, TIMES)
    moved = (found.eps != unguided.eps).any(1)
    assert moved.tolist() == [True, False, True, False, False]
    assert torch.equal(found.x0[~moved], unguided.x0[~moved])
    # at alpha = 0, x_t says nothing of the class
    end, cosine = torch.ones(5, dtype=torch.float64), mixture("vp_cosine")
    start = ClassifierGuidedScoreModel(cosine, cosine)(x_t, end, cond=LABELS)
    assert bool(start.x0.isfinite().all() & start.eps.isfinite().all())


class _Recorder(torch.nn.Module):
    def __init__(self, num_classes: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x, c_noise, cond=None):
        self.cond = cond
        return x


@pytest.mark.parametrize("num_classes", [None, 2])
def test_a_network_is_told_the_label_only_if_it_has_classes(num_classes: int | None):
    network, exact = _Recorder(num_classes), mixture()
    model = NetworkScoreModel(network, VP(), EpsParameterization())
    ClassifierGuidedScoreModel(model, exact)(draw(5, 3), TIMES, cond=Condition(label=LABELS))
    assert (network.cond is None) == (num_classes is None)
    GuidedScoreModel(exact, weight=2.0, reference=model)(draw(5, 3), TIMES, cond=LABELS)
    assert (network.cond is None) == (num_classes is None)


@pytest.mark.parametrize(
    "name", only(["ancestral", "dpm_solver_pp"], ["ancestral", "dpm_solver_pp", "probability_flow"])
)
def test_image_k_is_the_same_at_any_batch_size(name: str):
    model, label = mixture(), torch.arange(7) % 2
    guided = GuidedScoreModel(model, weight=3.0, interval=(0.3, 2.0), rescale=0.5)
    # each sample has steps of its own, whatever their errors may be
    steps = {"rtol": 1e-3, "atol": 1e-3} if name == "probability_flow" else {"num_steps": 20, "grid": "log_snr"}
    sampler = make_sampler(name, **steps)

    def drawn(index: range) -> Tensor:
        noise = NoiseStreams(0, index)
        x_T = sampler.prior_sample(model.sde, (3,), noise).double()
        return sampler.sample(guided, x_T, cond=label[index.start : index.stop], noise=noise).x0

    whole = drawn(range(7))
    for size in (1, 3):
        parts = torch.cat([drawn(range(k, min(k + size, 7))) for k in range(0, 7, size)])
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


def refuses(work, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and ";" in message and all(word in message for word in words), message


def test_bad_guidance_is_refused_in_one_line():
    model = mixture()
    for weight in (math.nan, math.inf):
        refuses(lambda weight=weight: GuidedScoreModel(model, weight=weight), "weight must be finite")
    for rescale in (-0.1, 1.1, math.nan):
        refuses(lambda rescale=rescale: GuidedScoreModel(model, rescale=rescale), "rescale must lie in [0, 1]")
    for interval in ((2.0, 0.2), (1.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0,)):
        refuses(lambda interval=interval: GuidedScoreModel(model, interval=interval), "0 <= lo < hi")  # type: ignore[arg-type]
    refuses(lambda: GuidedScoreModel(model, reference=mixture("ve")), "reference must be of the model's SDE", "VE(")
    # two tables of one family and size are told apart by their numbers
    steeper = GaussianMixtureScoreModel(Tabulated.ddpm(beta_end=0.03), means=draw(1, 3), covs=torch.eye(3)[None])
    flatter = GaussianMixtureScoreModel(Tabulated.ddpm(), means=draw(1, 3), covs=torch.eye(3)[None])
    refuses(lambda: GuidedScoreModel(flatter, reference=steeper), "with alpha, sigma = ", " at t = 0.")
    refuses(lambda: ClassifierGuidedScoreModel(model, mixture("ve")), "classifier must be of the model's SDE")
    refuses(lambda: ClassifierGuidedScoreModel(model, model, scale=math.nan), "scale must be finite")
    refuses(lambda: CFGPlusPlusWeight(-0.1, torch.tensor([1.0, 0.0])), "lambda of CFG++ must be at least 0")
    x_t = draw(5, 3)
    wide = GuidedScoreModel(model, weight=lambda _, t: t[:, None])
    refuses(lambda: wide(x_t, TIMES, cond=LABELS), "weight(sde, t) must give [5], one a sample, got [5, 1]")
    refuses(lambda: GuidedScoreModel(model, weight=2.0)(x_t, TIMES), "needs a condition to leave out")
    for cond in (None, Condition(values=draw(5, 1))):
        refuses(lambda cond=cond: ClassifierGuidedScoreModel(model, model)(x_t, TIMES, cond=cond), "needs labels")


@pytest.mark.parametrize(("num_classes", "null_condition"), [(2, False), (None, False), (2, True)])
def test_a_weight_without_a_null_branch_is_refused(num_classes: int | None, null_condition: bool):
    network = MLP(3, 8, 1, num_classes=num_classes, null_condition=null_condition)
    model = NetworkScoreModel(network, VE(), EpsParameterization())
    GuidedScoreModel(model)
    GuidedScoreModel(model, weight=2.0, reference=model)
    if null_condition:
        GuidedScoreModel(model, weight=2.0)
    else:
        refuses(lambda: GuidedScoreModel(model, weight=2.0), "trained without its condition now and then")
