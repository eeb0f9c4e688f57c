import math

import pytest
import torch
from torch import Tensor, nn

from likelihood import ContinuousBound, VariationalBound, discretized_gaussian_log_prob, prior_kl, step_kl
from models import (
    DiscreteScoreModel,
    EpsParameterization,
    GaussianMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    ScoreModel,
)
from sde_lib import SDE, VE, VP, LearnedVP, NoiseStreams, SubVP, Tabulated
from training.losses import ContinuousBoundLoss, DequantizedLoss, HybridLoss, Loss, make_loss, timestep_bits

LEVELS = 5
TABLE = Tabulated.ddpm(num_steps=12, beta_start=0.01, beta_end=0.4)


class _Network(nn.Module):
    """Some smooth function of its input, with a variance output if asked; float64."""

    def __init__(self, *, learned_variance: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 3, 3, generator=generator, dtype=torch.float64))
        self.channels = 2 if learned_variance else 1

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        turned = torch.einsum("kij,bcj->bki", self.weight, x.double())
        return torch.tanh(turned + 0.01 * c_noise[:, None, None])[:, : self.channels]


def _network(*, learned_variance: bool, sde: SDE = TABLE) -> NetworkScoreModel:
    backbone = _Network(learned_variance=learned_variance)
    return NetworkScoreModel(backbone, sde, EpsParameterization(), learned_variance=learned_variance)


def _data(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(LEVELS, (count, 1, 3), generator=generator).double() * 2 / (LEVELS - 1) - 1


def _noise(count: int) -> Tensor:
    return torch.randn(count, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("learned", [False, True])
def test_mean_of_l_vlb_over_all_rows_is_the_bound_less_its_prior(learned: bool):
    """The same quantity two ways: the training loss at every row, and the likelihood module's sum."""
    model = _network(learned_variance=learned)
    count = 4000
    x0 = _data(count)
    loss = make_loss("vlb", sde=TABLE, parameterization="eps", num_levels=LEVELS)
    kind = "learned" if learned else "small"
    terms = VariationalBound(num_levels=LEVELS, variance=kind)(model, x0, noise=NoiseStreams(0, range(count)))
    bound = (terms.total - terms.prior) / (3 * math.log(2))
    ours = torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for row in range(12):
            t = torch.full((count,), (row + 1) / 12, dtype=torch.float64)
            eps = torch.randn(count, 1, 3, generator=torch.Generator().manual_seed(row), dtype=torch.float64)
            ours += loss(model, x0, t, eps) / 12
    difference = ours - bound
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(count)
    # and each row apart is the likelihood module's own term, to the bit of its noise
    t = torch.full((count,), 5 / 12, dtype=torch.float64)
    eps = _noise(count)
    prediction = model(TABLE.perturb(x0, t, eps), t)
    truth = step_kl(kind, prediction, x0, TABLE, t - 1 / 12, t) / (3 * math.log(2))
    torch.testing.assert_close(loss(model, x0, t, eps), 12 * truth, rtol=1e-9, atol=1e-12)
    # at the first row the small variance is that of the second, as in Ho et al.'s and Nichol & Dhariwal's code
    t = torch.full((count,), 1 / 12, dtype=torch.float64)
    prediction = model(TABLE.perturb(x0, t, eps), t)
    fraction = 0.0 if prediction.variance_fraction is None else prediction.variance_fraction
    small, large = TABLE.posterior_coefficients(t, 2 * t)[2].log()[0], 2 * TABLE.log_sigma(t)[0]
    log_std = 0.5 * (fraction * large + (1 - fraction) * small)
    log_prob = discretized_gaussian_log_prob(x0, prediction.x0, log_std, num_levels=LEVELS)
    truth = -log_prob.flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(loss(model, x0, t, eps), 12 * truth, rtol=1e-9, atol=1e-12)


def test_rows_in_one_batch_are_the_rows_apart():
    model, x0, eps = _network(learned_variance=True), _data(6), _noise(6)
    rows = torch.tensor([0, 7, 0, 11, 1, 3])
    t = (rows.double() + 1) / 12

    def bits(index: Tensor) -> Tensor:
        prediction = model(TABLE.perturb(x0[index], t[index], eps[index]), t[index])
        return timestep_bits("learned", prediction, x0[index], TABLE, rows[index], num_levels=LEVELS)

    apart = torch.cat([bits(torch.tensor([k])) for k in range(6)])
    torch.testing.assert_close(bits(torch.arange(6)), apart, rtol=1e-12, atol=0)


def test_hybrid_trains_the_mean_by_l_simple_and_the_variance_by_l_vlb():
    """Gradients with respect to the network's two outputs, against those of the two losses apart."""
    x0, eps = _data(8), _noise(8)
    rows = torch.arange(8)
    t = (rows.double() + 1) / 12
    output = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()

    class Fixed(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return output

    model = NetworkScoreModel(Fixed(), TABLE, EpsParameterization(), learned_variance=True)
    loss = make_loss("hybrid", sde=TABLE, parameterization="eps", num_levels=LEVELS)
    (gradient,) = torch.autograd.grad(loss(model, x0, t, eps).sum(), output)
    bound = make_loss("vlb", sde=TABLE, parameterization="eps", num_levels=LEVELS)
    (of_bound,) = torch.autograd.grad(bound(model, x0, t, eps).sum(), output)
    of_simple = 2 * (output[:, :1] - eps) / 3
    torch.testing.assert_close(gradient[:, :1], of_simple.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient[:, 1:], 1e-3 * of_bound[:, 1:], rtol=1e-10, atol=1e-14)
    assert float(of_bound[:, 1:].abs().min()) > 0 and float(of_bound[:, :1].abs().max()) > 0
    assert HybridLoss.vlb_weight == 1e-3


def test_of_data_without_levels_the_last_term_is_that_of_a_density():
    model, eps, t = _network(learned_variance=True), _noise(6), torch.full((6,), 1 / 12, dtype=torch.float64)
    # inside, since the outermost bins are open
    x0, first = 0.5 * _data(6), torch.zeros(6, dtype=torch.long)
    prediction = model(TABLE.perturb(x0, t, eps), t)
    found = timestep_bits("learned", prediction, x0, TABLE, first, num_levels=None)
    # the mass of a narrow bin is the density times its width
    narrow = timestep_bits("learned", prediction, x0, TABLE, first, num_levels=2**14 + 1)
    torch.testing.assert_close(found + 13, narrow, rtol=0, atol=1e-5)
    # the others do not know of levels
    rows, t = first + 4, torch.full((6,), 5 / 12, dtype=torch.float64)
    both = [timestep_bits("learned", prediction, x0, TABLE, rows, num_levels=levels) for levels in (None, LEVELS)]
    assert torch.equal(*both)
    loss = make_loss("hybrid", sde=TABLE, parameterization="eps", num_levels=None)
    prediction = model(TABLE.perturb(x0, t, eps), t)
    expected = (prediction.eps - eps).square().flatten(1).mean(1) + 12e-3 * timestep_bits(
        "learned", prediction, x0, TABLE, rows, num_levels=None
    )
    torch.testing.assert_close(loss(model, x0, t, eps), expected, rtol=1e-9, atol=0)


def test_hybrid_refuses_a_network_without_variance():
    loss = make_loss("hybrid", sde=TABLE, parameterization="eps", num_levels=LEVELS)
    with pytest.raises(ValueError, match=r"'hybrid' needs model\.learned_variance"):
        loss(_network(learned_variance=False), _data(2), torch.tensor([0.5, 0.5]), _noise(2))


@pytest.mark.parametrize("name", ["vlb", "hybrid", "ddpm"])
def test_importance_sampled_rows_keep_the_mean_and_cut_the_noise(name: str):
    model = _network(learned_variance=True)
    count = 20_000
    x0, eps = _data(count), _noise(count)
    options = {"sde": TABLE, "parameterization": "eps", "num_levels": LEVELS}
    loss = make_loss(name, **options)
    plain, ours = (loss.time_sampler(TABLE, sampling) for sampling in ("uniform", "importance"))
    u = torch.rand(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        drawn = ours.draw(u)
        torch.testing.assert_close(drawn.t, plain.draw(u).t)
        assert bool((drawn.weight == 1).all())
        uniform = loss(model, x0, drawn.t, eps)
        ours.observe(drawn.t, uniform)
        drawn = ours.draw(u)
        weighted = drawn.weight * loss(model, x0, drawn.t, eps)
    error = math.sqrt(float(weighted.var() + uniform.var()) / count)
    assert abs(float(weighted.mean() - uniform.mean())) < 4 * error
    if name == "vlb":  # whose terms differ most
        assert float(weighted.std()) < 0.8 * float(uniform.std())
    # the smallest and the largest draw have a row too
    ends = ours.draw(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.t.tolist() == [1 / 12, 1.0]


# the last one's t_min is 0.1
SDES = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_max=20.0),
    "ddpm": Tabulated.ddpm(),
    "short": Tabulated.ddpm(num_steps=10, beta_start=1e-2, beta_end=0.5),
}


@pytest.mark.parametrize("sampling", ["uniform", "low_discrepancy", "importance"])
@pytest.mark.parametrize("name", sorted(SDES))
def test_likelihood_weighting_is_the_diffusion_term_of_the_continuous_bound(name: str, sampling: str):
    """For Gaussian data: 1/2 integral of E |eps error|^2 over log-SNR = 1/2 log(1 + v e^lambda) between the ends."""
    sde, var = SDES[name], 0.25
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 1), covs=var * torch.ones(1, 1, 1))
    loss = make_loss("dsm", sde=sde, parameterization="eps", weighting="likelihood")
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    x0 = math.sqrt(var) * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    drawn = loss.time_sampler(sde, sampling).draw(torch.rand(count, generator=generator, dtype=torch.float64))
    values = drawn.weight * loss(model, x0, drawn.t, eps)
    high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    truth = 0.5 * (math.log1p(var * math.exp(high)) - math.log1p(var * math.exp(low))) / math.log(2)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(count)
    if sampling == "importance" and name in ("vp", "subvp"):
        t = loss.times(sde, torch.rand(count, generator=generator, dtype=torch.float64))
        assert float(values.std()) < float(loss(model, x0, t, eps).std())


def _continuous(sde: SDE, model: ScoreModel, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    loss = make_loss("vlb_continuous", sde=sde, parameterization="eps", num_levels=LEVELS)
    return loss(model, x0, loss.times(sde, u), eps)


# the last has a prior term that counts
@pytest.mark.parametrize(
    "sde",
    [
        VP(),
        pytest.param(VE(sigma_min=0.02, sigma_max=20.0), marks=pytest.mark.slow),
        pytest.param(LearnedVP(log_snr_max=8.0), marks=pytest.mark.slow),
        LearnedVP(log_snr_max=8.0, log_snr_min=-1.0),
    ],
)
def test_continuous_loss_of_the_exact_denoiser_is_entropy_and_prior(sde: SDE):
    """At equality the bound is the entropy of discrete data, and L_T; the decoder at t_min costs next to nothing."""
    probs = [0.1, 0.3, 0.05, 0.35, 0.2]
    points = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)[:, None]
    model = DiscreteScoreModel(sde, points=points, probs=probs)
    count = 40_000
    torch.manual_seed(0)
    x0, eps = model.sample_data(count).double(), torch.randn(count, 1, dtype=torch.float64)
    with torch.no_grad():
        values = _continuous(sde, model, x0, torch.rand(count, dtype=torch.float64), eps)
        truth = float(prior_kl(x0, sde, sde.t_max).mean()) / math.log(2) - sum(p * math.log2(p) for p in probs)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(count)
    measured = ContinuousBound(num_levels=LEVELS)(model, x0[:4000], noise=NoiseStreams(0, range(4000)))
    error = math.hypot(float(measured.bits_per_dim.std()) / math.sqrt(4000), float(values.std()) / math.sqrt(count))
    assert abs(float(measured.bits_per_dim.mean() - values.mean())) < 4 * error


def test_continuous_loss_trains_the_ends_by_itself_and_the_inside_by_its_square():
    sde = LearnedVP(log_snr_max=6.0, log_snr_min=-4.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sde.inner_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model = _network(learned_variance=False, sde=sde)
    x0, eps, u = _data(7), _noise(7), torch.rand(7, dtype=torch.float64)
    _continuous(sde, model, x0, u, eps).sum().backward()
    with torch.no_grad():
        ends = _ends_only(sde, model, x0, eps)
    step = 1e-5
    for parameters, power in (((sde.gamma_min, sde.gamma_max), 1), (sde.inner_parameters(), 2)):
        for parameter in parameters:
            index = tuple(0 for _ in parameter.shape)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * step
                    total = _continuous(sde, model, x0, u, eps)
                    # the inside changes the diffusion term alone
                    values.append(float((total if power == 1 else (total - ends) ** 2).sum()))
                    parameter[index] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert parameter.grad is not None
            assert float(parameter.grad[index]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("loss", [ContinuousBoundLoss, DequantizedLoss])
def test_a_bound_built_by_itself_is_the_one_built_by_name(loss: type[Loss]):
    model, x0, eps = _network(learned_variance=False, sde=VP()), _data(6), _noise(6)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    name = {ContinuousBoundLoss: "vlb_continuous", DequantizedLoss: "dequantized"}[loss]
    values = []
    for built in (
        loss(num_levels=LEVELS),
        make_loss(name, sde=VP(), parameterization="edm", weighting="auto", num_levels=LEVELS),
    ):
        torch.manual_seed(0)
        values.append(built(model, x0, t, eps))
    assert torch.equal(*values)


def _ends_only(sde: SDE, model: NetworkScoreModel, x0: Tensor, eps: Tensor) -> Tensor:
    """L_0 + L_T: what a model without any error in eps pays."""

    class Exact(ScoreModel):
        def forward(self, x_t: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Prediction:
            return Prediction.from_eps(x_t, eps, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))

    return _continuous(sde, Exact(sde), x0, torch.full((len(x0),), 0.5, dtype=torch.float64), eps)


@pytest.mark.parametrize(
    ("name", "sde", "options", "message"),
    [
        ("vlb", VP(), {"num_levels": 5}, "needs an SDE with a table"),
        ("vlb", TABLE, {}, "needs num_levels"),
        ("vlb", TABLE, {"num_levels": 1}, "num_levels must be at least 2"),
        ("hybrid", TABLE, {"num_levels": 5, "step_sampling": "imprtance"}, "did you mean 'importance'"),
        ("ddpm", TABLE, {"weighting": "likelihood"}, "is one of continuous time"),
        ("dsm", VP(), {"step_sampling": "importance"}, "needs weighting 'likelihood'"),
        ("vlb_continuous", VP(), {}, "needs num_levels"),
        ("vlb_continuous", LearnedVP(), {"num_levels": 5, "step_sampling": "importance"}, "use 'low_discrepancy'"),
        ("vlb_continuous", VP(), {"num_levels": 5, "weighting": "edm"}, "has its own weighting, got 'edm'"),
        ("dequantized", VP(), {"num_levels": 5, "weighting": "eps"}, "has its own weighting, got 'eps'"),
        ("vlb", TABLE, {"num_levels": 5, "weighting": "x0"}, "has its own weighting, got 'x0'"),
        ("hybrid", TABLE, {"num_levels": 5, "weighting": "v"}, "has its own weighting, got 'v'"),
    ],
)
def test_refusals_of_the_bounds(name: str, sde: SDE, options: dict, message: str):
    options = dict(options)
    sampling = options.pop("step_sampling", "uniform")
    with pytest.raises(ValueError) as caught:
        make_loss(name, sde=sde, parameterization="eps", **options).time_sampler(sde, sampling)
    assert message in str(caught.value) and "\n" not in str(caught.value)
