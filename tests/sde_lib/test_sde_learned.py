"""The learned schedule: its formula in 50 digits, its gradients by differences, its types, its promises in training."""

import copy
import gc
import math
import weakref

import mpmath
import pytest
import torch
from learned_schedules import perturbed
from mpmath import mpf

from sde_lib import LearnedVP

TIMES = torch.tensor([0.0, 1e-12, 1e-6, 0.013, 0.25, 0.5, 0.77, 0.99, 1 - 1e-9, 1.0], dtype=torch.float64)


def schedules():
    return [LearnedVP(), perturbed(LearnedVP()), perturbed(LearnedVP(hidden_size=7), scale=2.0, seed=1)]


def by_formula(sde, t):
    """gamma and its derivative in 50 digits: the two-layer network as the paper writes it, scaled to the ends."""
    k, h = ([mpmath.exp(mpf(v)) for v in p.tolist()] for p in (sde.log_slope, sde.log_height))
    b = [mpf(v) for v in sde.bias.tolist()]

    def network(t):
        return t + sum(hj / (1 + mpmath.exp(-(kj * t + bj))) for kj, hj, bj in zip(k, h, b, strict=True))

    low, high = mpf(sde.gamma_min.item()), mpf(sde.gamma_max.item())
    scale = (high - low) / (network(mpf(1)) - network(mpf(0)))
    rate = 1 + sum(
        hj * kj / ((1 + mpmath.exp(-(kj * t + bj))) * (1 + mpmath.exp(kj * t + bj)))
        for kj, hj, bj in zip(k, h, b, strict=True)
    )
    return low + scale * (network(t) - network(mpf(0))), scale * rate


@pytest.mark.parametrize("sde", schedules())
def test_every_digit_of_the_formula(sde):
    with torch.no_grad():
        log_snr, rate = sde.log_snr_and_rate(TIMES)
        names = ("log_alpha", "log_sigma", "alpha", "sigma", "drift_coeff", "diffusion_sq", "log_snr")
        got = {name: getattr(sde, name)(TIMES).tolist() for name in names}
    for i, t in enumerate(TIMES.tolist()):
        with mpmath.workdps(50):
            gamma, gamma_rate = by_formula(sde, mpf(t))
            alpha_sq, sigma_sq = 1 / (1 + mpmath.exp(gamma)), 1 / (1 + mpmath.exp(-gamma))
            expected = {
                "log_alpha": mpmath.log(alpha_sq) / 2,
                "log_sigma": mpmath.log(sigma_sq) / 2,
                "alpha": mpmath.sqrt(alpha_sq),
                "sigma": mpmath.sqrt(sigma_sq),
                # beta = -d log alpha^2 / dt = sigma^2 gamma', and f = -beta / 2
                "drift_coeff": -sigma_sq * gamma_rate / 2,
                "diffusion_sq": sigma_sq * gamma_rate,
            }
            assert abs(log_snr[i].item() + gamma) < 1e-14
            assert abs(rate[i].item() / -gamma_rate - 1) < 1e-14
            for name, value in expected.items():
                # gamma itself, of size 13, is only as good as its last digit
                assert abs(got[name][i] / value - 1) < 2e-14, (name, t)
            assert got["log_snr"][i] == log_snr[i].item()


def test_a_new_schedule_is_linear_and_takes_no_random_numbers():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sde = LearnedVP()
    assert torch.equal(torch.random.get_rng_state(), before)
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    log_snr, rate = sde.log_snr_and_rate(t)
    assert (log_snr - (13.3 - 18.3 * t)).abs().max() < 2e-5
    assert (rate / -18.3 - 1).abs().max() < 1e-4
    # with fewer units it is rougher, and still no schedule that anyone would regret
    for size in (1, 8, 32):
        rate = LearnedVP(hidden_size=size).log_snr_and_rate(t)[1]
        assert (rate / -18.3 - 1).abs().max() < 0.12


@pytest.mark.parametrize("hidden_size", [1, 3, 64, 1024])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_ends_are_exact_and_the_schedule_falls_whatever_the_weights(hidden_size, scale):
    sde = perturbed(LearnedVP(hidden_size=hidden_size), scale=scale, seed=hidden_size)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    with torch.no_grad():
        for times in (t, t.flip(0), t[[0, -1]], torch.stack([t, t.flip(0)])):
            log_snr = sde.log_snr(times)
            assert log_snr.shape == times.shape
            assert (log_snr[times == 0] == -sde.gamma_min).all()
            assert (log_snr[times == 1] == -sde.gamma_max).all()
        log_snr, rate = sde.log_snr_and_rate(t)
        assert (log_snr.diff() < 0).all() and (rate < 0).all()
        alpha, sigma = sde.alpha_sigma(t)
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t), rtol=0, atol=4e-16)


@pytest.mark.parametrize("sde", schedules())
def test_rate_is_the_derivative(sde):
    t = torch.linspace(0, 1, 41, dtype=torch.float64).requires_grad_()
    log_snr, rate = sde.log_snr_and_rate(t)
    (by_autograd,) = torch.autograd.grad(log_snr.sum(), t)
    torch.testing.assert_close(by_autograd, rate.detach(), rtol=1e-12, atol=0)
    inside, step = t.detach()[1:-1], 1e-5
    with torch.no_grad():
        difference = (sde.log_snr(inside + step) - sde.log_snr(inside - step)) / (2 * step)
    torch.testing.assert_close(difference, rate.detach()[1:-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "function", ["log_snr", "log_snr_and_rate", "log_alpha", "log_sigma", "alpha_sigma", "drift_coeff", "diffusion_sq"]
)
def test_gradients_of_every_parameter_are_those_of_differences(function):
    sde = perturbed(LearnedVP(hidden_size=5, log_snr_max=6.0))
    t = torch.tensor([0.0, 0.1, 0.5, 0.93, 1.0], dtype=torch.float64)
    # differences at one tolerance need values of one size
    with torch.no_grad():
        sde.gamma_min.fill_(-2.0)
        sde.gamma_max.fill_(1.5)
    assert torch.autograd.gradcheck(lambda *_: getattr(sde, function)(t), tuple(sde.parameters()), atol=1e-7)


def gradient(parameter):
    assert parameter.grad is not None
    return parameter.grad


def test_the_ends_have_the_gradient_of_their_own_value_alone():
    sde = perturbed(LearnedVP())
    for time, own, other in ((0.0, sde.gamma_min, sde.gamma_max), (1.0, sde.gamma_max, sde.gamma_min)):
        sde.zero_grad()
        sde.log_snr(torch.tensor([time], dtype=torch.float64)).sum().backward()
        assert (gradient(own), gradient(other)) == (-1, 0)
        assert all(gradient(parameter).abs().max() < 1e-13 for parameter in sde.inner_parameters())


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_inverse_to_ten_digits_without_a_graph(scale):
    sde = perturbed(LearnedVP(), scale=scale, seed=4)
    low, high = -sde.gamma_max.item(), -sde.gamma_min.item()
    log_snr = torch.linspace(low, high, 1501, dtype=torch.float64)
    log_snr[[0, -1]] = torch.tensor([low, high], dtype=torch.float64)
    t = sde.time_from_log_snr(log_snr.requires_grad_())
    assert not t.requires_grad
    with torch.no_grad():
        assert (sde.log_snr(t) - log_snr).abs().max() < 1e-13
        assert t[0] == 1 and t[-1] == 0
        times = torch.linspace(0, 1, 1501, dtype=torch.float64).square()
        assert (sde.time_from_log_snr(sde.log_snr(times)) - times).abs().max() < 1e-10
        assert (sde.log_snr(sde.time_from_sigma(sde.sigma(times))) - sde.log_snr(times)).abs().max() < 1e-10
    beyond = torch.tensor([[low - 1, high + 1], [-math.inf, math.inf]], dtype=torch.float64)
    assert sde.time_from_log_snr(beyond).tolist() == [[1, 0], [1, 0]]


def test_inverse_where_newton_alone_would_leave():
    """One unit so steep that the schedule is a step: bisection has to find it."""
    sde = LearnedVP(hidden_size=1)
    with torch.no_grad():
        sde.log_slope.fill_(math.log(1e6))
        sde.bias.fill_(-0.37e6)
        sde.log_height.fill_(math.log(1e3))
        log_snr = torch.linspace(-4.99, 13.29, 301, dtype=torch.float64)
        t = sde.time_from_log_snr(log_snr)
        # in the step, one unit in the last place of t is this much
        assert (sde.log_snr(t) - log_snr).abs().max() < 18.3 * 1e6 * 1e-16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
def test_casts_of_a_model_leave_the_schedule_alone(dtype):
    sde = perturbed(LearnedVP())
    expected = sde.log_snr(TIMES).detach()
    sde.log_snr(TIMES).sum().backward()
    model = torch.nn.ModuleDict({"sde": sde, "network": torch.nn.Linear(2, 2)})
    model.to(dtype)
    assert {p.dtype for p in model["network"].parameters()} == {dtype}
    assert {p.dtype for p in sde.parameters()} == {gradient(p).dtype for p in sde.parameters()} == {torch.float64}
    assert torch.equal(sde.log_snr(TIMES), expected)
    assert model.to("meta")["sde"].gamma_min.device.type == "meta"


def test_autocast_and_narrow_times_leave_float64():
    sde = perturbed(LearnedVP())
    t = torch.rand(64, generator=torch.Generator().manual_seed(0))
    functions = (sde.log_snr, sde.log_alpha, sde.sigma, sde.diffusion_sq, sde.time_from_log_snr)
    expected = [f(t.double()) for f in functions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(f(t), value) for f, value in zip(functions, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_may_lie_on_another_device():
    sde = perturbed(LearnedVP())
    expected = sde.log_snr(TIMES).detach()
    sde.cuda().half()
    for device in ("cpu", "cuda"):
        with torch.autocast("cuda"):
            log_snr, rate = sde.log_snr_and_rate(TIMES.to(device))
        assert log_snr.device.type == rate.device.type == device
        torch.testing.assert_close(log_snr.detach().cpu(), expected, rtol=1e-14, atol=0)
        assert (sde.time_from_log_snr(log_snr).cpu() - TIMES).abs().max() < 1e-12
        assert sde.time_from_log_snr(log_snr).device.type == device


def test_state_and_copies():
    sde = perturbed(LearnedVP())
    other = LearnedVP()
    other.load_state_dict(sde.state_dict())
    twin = copy.deepcopy(sde)
    assert torch.equal(other.log_snr(TIMES), sde.log_snr(TIMES))
    assert torch.equal(twin.log_snr(TIMES), sde.log_snr(TIMES))
    with torch.no_grad():
        sde.gamma_max.add_(1)
    assert twin.gamma_max + 1 == sde.gamma_max
    names = {"gamma_min", "gamma_max", "log_slope", "bias", "log_height"}
    assert set(sde.state_dict()) == names
    split = [sde.gamma_min, sde.gamma_max, *sde.inner_parameters()]
    assert {id(p) for p in split} == {id(p) for p in sde.parameters()} and len(split) == len(names)


def error_of(log_snr):
    """E|eps - eps_hat|^2 of one dimension of data N(m, s^2), s = 0.3, at x0 = m + 2 s, by the best denoiser."""
    snr = log_snr.exp()
    return snr * ((2 * 0.3) ** 2 + 0.3**4 * snr) / (1 + 0.3**2 * snr) ** 2


def test_the_mean_of_the_loss_is_blind_to_the_inside_of_the_schedule():
    """Kingma et al. 2021, Section 5.1: by the trapezoidal rule, against the integral over SNR in closed form."""
    s = 0.3

    def antiderivative(snr):
        return 0.5 * (-((2 * s) ** 2) / (s**2 * (1 + s**2 * snr)) + math.log(1 + s**2 * snr) + 1 / (1 + s**2 * snr))

    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for sde in schedules():
        log_snr, rate = sde.log_snr_and_rate(t)
        loss = torch.trapezoid(-0.5 * rate * error_of(log_snr), t)
        ends = [antiderivative(math.exp(v)) for v in (log_snr[-1].item(), log_snr[0].item())]
        assert loss.item() == pytest.approx(ends[1] - ends[0], rel=1e-6)
        gradients = torch.autograd.grad(loss, list(sde.parameters()))
        assert all(g.abs().max() < 1e-4 for g in gradients[2:])
        # the integral over gamma, by its lower and its upper end
        at_ends = torch.stack([-error_of(log_snr[0]), error_of(log_snr[-1])]).detach() / 2
        torch.testing.assert_close(torch.stack(gradients[:2]), at_ends, rtol=1e-3, atol=1e-4)


def losses_of(sde, t, scale):
    """Losses that depend on the schedule in every way a denoiser can, and on one weight of a network."""
    log_snr, rate = sde.log_snr_and_rate(t)
    return -0.5 * rate * (sde.alpha(t) + scale * sde.sigma(t) + 0.1 * log_snr).square()


def test_split_gradients_are_those_of_the_mean_and_of_the_mean_square():
    sde = perturbed(LearnedVP())
    scale = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    t = torch.rand(33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    follow_mean = [sde.gamma_min, sde.gamma_max, scale]
    mean = torch.autograd.grad(losses_of(sde, t, scale).mean(), follow_mean)
    square = torch.autograd.grad(losses_of(sde, t, scale).square().mean(), sde.inner_parameters())
    with sde.split_gradients() as split:
        losses = losses_of(sde, t, scale)
        split.loss = losses
    (losses.mean() + 3 * sde.sigma(torch.ones(1)).sum()).backward()
    sigma = sde.sigma(torch.ones(1))
    (of_the_end,) = torch.autograd.grad(3 * sigma.sum(), sde.gamma_max)
    for parameter, expected in zip(follow_mean, mean, strict=True):
        if parameter is sde.gamma_max:
            expected = expected + of_the_end
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-15)
    for parameter, expected in zip(sde.inner_parameters(), square, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    # and nothing is left behind
    again = torch.autograd.grad(losses_of(sde, t, scale).mean(), follow_mean)
    torch.testing.assert_close(again, mean, rtol=0, atol=0)


def test_following_them_removes_the_variance_and_leaves_the_mean():
    sde = LearnedVP()
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    optimizer = torch.optim.Adam(sde.inner_parameters(), lr=0.02)

    def mean_and_variance():
        log_snr, rate = sde.log_snr_and_rate(t)
        loss = -0.5 * rate * error_of(log_snr)
        return loss.mean().item(), loss.var().item()

    before = mean_and_variance()
    for _ in range(200):
        optimizer.zero_grad()
        with sde.split_gradients() as split:
            log_snr, rate = sde.log_snr_and_rate(t)
            loss = -0.5 * rate * error_of(log_snr)
            split.loss = loss
        loss.mean().backward()
        optimizer.step()
    after = mean_and_variance()
    assert after[0] == pytest.approx(before[0], rel=1e-4)
    assert after[1] < 0.05 * before[1]


def test_split_gradients_refuse_what_they_cannot_split():
    sde, t = LearnedVP(), torch.rand(4)
    with sde.split_gradients():
        log_snr = sde.log_snr(t)
    with pytest.raises(RuntimeError, match=r"must be set before backward; assign it to split\.loss"):
        log_snr.mean().backward()
    with sde.split_gradients() as split:
        log_snr = sde.log_snr(t)
        split.loss = log_snr.mean()
    with pytest.raises(RuntimeError, match=r"must have the shape of the times, \[4\], got \[\]"):
        log_snr.mean().backward()


def test_a_step_leaves_nothing_in_memory():
    """The graph holds the hooks, and they the split: were the loss kept with its graph, both would live for ever."""
    sde, t = LearnedVP(), torch.rand(4, dtype=torch.float64)
    with sde.split_gradients() as split:
        loss = sde.log_snr_and_rate(t)[1]
        split.loss = loss
    loss.mean().backward()
    gone = weakref.ref(split)
    del split, loss
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_snr_max": -5.0}, "log_snr_min < log_snr_max"),
        ({"log_snr_max": math.inf}, "log_snr_max < 700"),
        ({"log_snr_min": math.nan}, "got nan and 13.3"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, a whole number, got 0"),
        ({"hidden_size": 8.0}, "hidden_size must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        LearnedVP(**options)
    assert "\n" not in str(error.value)
