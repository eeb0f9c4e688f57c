"""NetworkScoreModel: a network that gives the right target leads to the exact x0 and eps, whatever the target is."""

import pytest
import torch
from torch import nn

from models import (
    EDMParameterization,
    EpsParameterization,
    NetworkScoreModel,
    ScoreParameterization,
    VParameterization,
    X0Parameterization,
    make_parameterization,
    time_input,
)
from sde_lib import VE, CosineVP, SubVP, Tabulated, make_sde

SDES = ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"]
DATA_STD = 0.6


class Recorder(nn.Module):
    """A network that answers ``target`` and remembers what it was asked."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, time, **kwargs):
        self.x, self.time, self.kwargs = x, time, kwargs
        return self.target


def column(value):
    return value.reshape(-1, 1, 1, 1)


def problem(sde, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
    return x0, eps, t, column(sde.alpha(t)), column(sde.sigma(t))


def edm_terms(alpha, sigma):
    """Karras et al. 2022, Table 1, for x = x_t / alpha at noise level s = sigma / alpha: skip, out, in, noise."""
    s, d = sigma / alpha, DATA_STD
    c_skip = d**2 / (s**2 + d**2)
    c_out = s * d / torch.sqrt(d**2 + s**2)
    c_in = 1 / torch.sqrt(s**2 + d**2)
    return c_skip, c_out, c_in, torch.log(s) / 4


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "edm"])
@pytest.mark.parametrize("sde_name", SDES)
def test_the_right_output_gives_exact_x0_and_eps(sde_name, name):
    sde = make_sde(sde_name)
    x0, eps, t, alpha, sigma = problem(sde)
    x_t = alpha * x0 + sigma * eps
    c_skip, c_out, c_in, _ = edm_terms(alpha, sigma)
    target = {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "score": sigma * (-eps / sigma),
        "edm": (x0 - c_skip * x_t / alpha) / c_out,
    }[name]
    network = Recorder(target)
    model = NetworkScoreModel(network, sde, make_parameterization(name, data_std=DATA_STD))
    prediction = model(x_t, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.score, -eps / sigma, rtol=1e-9, atol=1e-9)
    assert torch.equal(prediction.sigma, sde.sigma(t))
    torch.testing.assert_close(network.x, c_in * x_t / alpha if name == "edm" else x_t, rtol=1e-14, atol=0)
    assert network.kwargs == {}


def test_edm_on_ve_is_table_1():
    """alpha = 1: the four coefficients letter by letter, and unit variance in and out."""
    sde, d = VE(sigma_min=0.002, sigma_max=80.0), 0.5
    parameterization = EDMParameterization(data_std=d)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    s = 0.002 * (80 / 0.002) ** t
    torch.testing.assert_close(parameterization.c_in(sde, t), 1 / torch.sqrt(s**2 + d**2), rtol=1e-13, atol=0)
    torch.testing.assert_close(parameterization.c_noise(sde, t), torch.log(s) / 4, rtol=1e-13, atol=1e-14)
    ones, zeros = torch.ones(9, 1, dtype=torch.float64), torch.zeros(9, 1, dtype=torch.float64)
    kind, skip = parameterization.read(zeros, ones, sde, t)
    assert kind == "x0"
    torch.testing.assert_close(skip[:, 0], d**2 / (s**2 + d**2), rtol=1e-13, atol=0)
    out = parameterization.read(ones, zeros, sde, t)[1]
    torch.testing.assert_close(out[:, 0], s * d / torch.sqrt(d**2 + s**2), rtol=1e-13, atol=0)


@pytest.mark.parametrize("sde_name", SDES)
def test_edm_keeps_the_target_at_unit_variance(sde_name):
    """Karras et al. 2022, Eq. 114 and 118: for independent x0 of std d, Var[c_in x_t] = Var[target] = 1."""
    sde, d = make_sde(sde_name), DATA_STD
    parameterization = EDMParameterization(data_std=d)
    t = torch.tensor([0.03, 0.4, 0.9], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    var_x_t = alpha**2 * d**2 + sigma**2
    torch.testing.assert_close(parameterization.c_in(sde, t) ** 2 * var_x_t, torch.ones(3).double())
    one, zero = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    c_skip, c_out = parameterization.read(zero, one, sde, t)[1][:, 0], parameterization.read(one, zero, sde, t)[1][:, 0]
    target_var = ((1 - c_skip * alpha) ** 2 * d**2 + (c_skip * sigma) ** 2) / c_out**2
    torch.testing.assert_close(target_var, torch.ones(3).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [10, 50, 1000, 4000])
def test_the_index_is_the_row_of_the_table(size):
    sde = Tabulated.ddpm(num_steps=size)
    t = torch.arange(1, size + 1, dtype=torch.float64) / size
    for name in ("index", "auto"):
        torch.testing.assert_close(time_input(name, sde, t), torch.arange(size).double(), rtol=0, atol=1e-11)
    # a float32 t is off by its own rounding and no more
    single = time_input("index", sde, t.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, torch.arange(size).double(), rtol=0, atol=size * 2**-24)


def test_the_other_time_inputs():
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    sde = SubVP()
    assert torch.equal(time_input("t999", sde, t), 999 * t)
    assert torch.equal(time_input("auto", sde, t), 999 * t)
    torch.testing.assert_close(time_input("log_sigma", sde, t), sde.sigma(t).log())
    torch.testing.assert_close(time_input("log_half_sigma", sde, t), (sde.sigma(t) / 2).log())
    table = Tabulated.ncsn(num_steps=5)
    rows = torch.arange(1, 6, dtype=torch.float64) / 5
    assert time_input("reversed_index", table, rows).tolist() == pytest.approx([4, 3, 2, 1, 0], abs=1e-12)
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    assert time_input("log_snr", sde, ends).tolist() == pytest.approx([0.0, 999.0], abs=1e-9)
    high, low = 2 * (sde.alpha(ends) / sde.sigma(ends)).log()
    here = 2 * (sde.alpha(t) / sde.sigma(t)).log()
    torch.testing.assert_close(time_input("log_snr", sde, t), 999 * (high - here) / (high - low))
    torch.testing.assert_close(time_input("edm", sde, t), torch.log(sde.sigma(t) / sde.alpha(t)) / 4)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "edm"])
def test_each_parameterization_tells_the_network_the_time_it_is_told_to(name):
    sde = Tabulated.ddpm()
    t = torch.tensor([0.1, 0.5], dtype=torch.float64)
    x = torch.zeros(2, 1, 2, 2)
    for told in ("auto", "index", "t999", "log_snr", "log_sigma", "edm"):
        network = Recorder(x)
        NetworkScoreModel(network, sde, make_parameterization(name, time_input=told))(x, t)
        used = "edm" if (name, told) == ("edm", "auto") else told
        assert torch.equal(network.time, time_input(used, sde, t))
        assert network.time.dtype == torch.float64


def test_names_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown parameterization 'epz'; did you mean 'eps'\\? choices: edm, eps"):
        make_parameterization("epz")
    choices = (
        "choices: auto, edm, edm1000, index, index1000, log_half_sigma, log_sigma, log_snr, reversed_index, "
        "reversed_t, reversed_t999, t, t1000, t999"
    )
    with pytest.raises(ValueError, match=f"unknown time input 'indx'; did you mean 'index'\\? {choices}"):
        time_input("indx", SubVP(), torch.ones(1))
    with pytest.raises(ValueError, match="unknown time input 'sigma'"):
        make_parameterization("eps", time_input="sigma")
    with pytest.raises(ValueError, match="'index' needs an SDE with a table; use 't999'"):
        time_input("index", SubVP(), torch.ones(1))
    for data_std in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="data_std must be above 0"):
            EDMParameterization(data_std=data_std)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_variance_is_the_second_half_of_the_channels(channels):
    sde = Tabulated.ddpm()
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x_t, eps = torch.randn(2, 2, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    v = torch.linspace(-1, 1, eps.numel()).reshape(eps.shape)
    model = NetworkScoreModel(Recorder(torch.cat([eps, v], 1)), sde, EpsParameterization(), learned_variance=True)
    prediction = model(x_t, t)
    assert torch.equal(prediction.eps, eps)
    # Nichol & Dhariwal 2021, Section 3.1: [-1, 1] to [0, 1]
    torch.testing.assert_close(prediction.variance_fraction, (v + 1) / 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("learned_variance", [True, False])
def test_an_output_of_the_wrong_shape_is_refused(channels, learned_variance):
    x = torch.zeros(2, channels, 4, 4)
    wrong = x if learned_variance else torch.zeros(2, 2 * channels, 4, 4)
    right = [2, (1 + learned_variance) * channels, 4, 4]
    model = NetworkScoreModel(Recorder(wrong), SubVP(), EpsParameterization(), learned_variance=learned_variance)
    with pytest.raises(ValueError) as error:
        model(x, torch.ones(2))
    assert f"the backbone must return shape {right}, got {list(wrong.shape)}; set learned_variance" in str(error.value)


def test_a_time_of_the_wrong_shape_is_refused():
    x = torch.zeros(16, 3)
    with pytest.raises(ValueError) as error:
        NetworkScoreModel(Recorder(x), SubVP(), EpsParameterization())(x, torch.ones(16, 1))
    assert str(error.value) == "t must have shape [16], got [16, 1]; pass t.flatten()"


def test_the_condition_reaches_the_network_and_only_if_there_is_one():
    x, cond = torch.zeros(3, 2), torch.tensor([4, 5, 6])
    network = Recorder(x)
    model = NetworkScoreModel(network, SubVP(), EpsParameterization())
    model(x, torch.full((3,), 0.5), cond=cond)
    assert torch.equal(network.kwargs["cond"], cond)
    model(x, torch.full((3,), 0.5))
    assert "cond" not in network.kwargs


@pytest.mark.parametrize("parameterization", [EpsParameterization(), X0Parameterization(), VParameterization()])
def test_a_low_precision_network_leaves_the_coefficients_alone(parameterization):
    sde = CosineVP()
    x_t, target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 0.99], dtype=torch.float64)
    low = NetworkScoreModel(Recorder(target.bfloat16()), sde, parameterization)(x_t, t)
    full = NetworkScoreModel(Recorder(target.bfloat16().float()), sde, parameterization)(x_t, t)
    assert low.x0.dtype == low.eps.dtype == torch.float32
    assert low.sigma.dtype == torch.float64
    assert torch.equal(low.x0, full.x0)
    assert torch.equal(low.eps, full.eps)


def test_autocast_touches_the_network_alone():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, time):
            out = self.layer(x)
            self.dtype = out.dtype
            return out

    sde, network = make_sde("vp"), Linear()
    model = NetworkScoreModel(network, sde, ScoreParameterization())
    x_t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.7, 0.99], dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(x_t, t)
    assert network.dtype == torch.bfloat16
    assert prediction.eps.dtype == torch.float32
    assert torch.equal(prediction.sigma, sde.sigma(t))
    alpha, sigma = sde.alpha(t).float()[:, None], sde.sigma(t).float()[:, None]
    # float32's rounding of x_t - sigma eps, seen through 1 / alpha; bfloat16's would be 2^16 times that
    rounding = (x_t.abs() + (sigma * prediction.eps).abs()) / alpha * 2**-23
    assert bool(((prediction.x0 - (x_t - sigma * prediction.eps) / alpha).abs() <= rounding).all())
