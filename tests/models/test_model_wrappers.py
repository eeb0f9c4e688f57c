"""Wrappers around models: clipping, counting calls, and the variance of the reverse chain."""

import pytest
import torch
from torch import nn

from models import (
    ClippedScoreModel,
    Condition,
    EpsParameterization,
    GaussianMixtureScoreModel,
    LabelledMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    ScoreModel,
    ToldAboveScoreModel,
    check_variance,
    count_network_calls,
    interpolate_log_var,
    reverse_log_var,
)
from models.backbones import MLP
from sde_lib import VP, Tabulated, make_sde

TIMES = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)


class ZeroNetwork(nn.Module):
    def forward(self, x, time):
        return torch.zeros_like(x)


def wide_model(sde):
    """An oracle of data far wider than [-1, 1]."""
    return GaussianMixtureScoreModel(sde, means=torch.zeros(1, 4), covs=9 * torch.eye(4)[None])


@pytest.mark.parametrize("sde_name", ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"])
def test_clipping_keeps_x0_in_range_and_x_t_together(sde_name):
    sde = make_sde(sde_name)
    raw, clipped = wide_model(sde), ClippedScoreModel(wide_model(sde), low=-0.5, high=2.0)
    x_t = 3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = raw(x_t, TIMES), clipped(x_t, TIMES)
    assert torch.equal(after.x0, before.x0.clamp(-0.5, 2.0))
    assert (after.x0 != before.x0).any()
    alpha, sigma = sde.alpha(TIMES)[:, None], sde.sigma(TIMES)[:, None]
    torch.testing.assert_close(alpha * after.x0 + sigma * after.eps, x_t, rtol=1e-13, atol=1e-13)
    inside = after.x0 == before.x0
    torch.testing.assert_close(after.eps[inside], before.eps[inside], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after.score, -after.eps / sigma)


def test_clipping_passes_on_what_it_does_not_change():
    class Learned(ScoreModel):
        def forward(self, x_t, t, *, cond=None):
            self.cond = cond
            return Prediction(x0=x_t, eps=x_t, sigma=self.sde.sigma(t), variance_fraction=0.3 * torch.ones_like(x_t))

    model, x, cond = Learned(VP()), torch.randn(3, 2), torch.tensor([1, 2, 3])
    clipped = ClippedScoreModel(model)
    assert clipped.sde is model.sde
    assert torch.equal(clipped(x, TIMES, cond=cond).variance_fraction, 0.3 * torch.ones(3, 2))
    assert model.cond is cond


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (0.0, 0.0)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(ValueError, match=f"low must be below high, got {low} and {high}; swap them"):
        ClippedScoreModel(wide_model(VP()), low=low, high=high)


class Twice(ScoreModel):
    """Guidance that asks its model twice and a second model once."""

    def __init__(self, model, other):
        super().__init__(model.sde)
        self.model, self.other = model, other

    def forward(self, x_t, t, *, cond=None):
        self.model(x_t, t)
        self.other(x_t, t)
        return self.model(x_t, t)


def network():
    return NetworkScoreModel(ZeroNetwork(), VP(), EpsParameterization())


def test_calls_are_counted_at_the_innermost_models():
    x, t = torch.zeros(3, 2), TIMES
    inner, other = network(), wide_model(VP())
    x = torch.zeros(3, 4)
    for model, per_call in [
        (inner, 1),
        (ClippedScoreModel(inner), 1),
        (Twice(inner, other), 3),
        (ClippedScoreModel(Twice(ClippedScoreModel(inner), other)), 3),
        (Twice(inner, inner), 3),
    ]:
        with count_network_calls(model) as counter:
            assert counter.calls == 0
            model(x, t)
            assert counter.calls == per_call
            model(x, t)
            model.score(x, model.sde.sigma(t))
            assert counter.calls == 3 * per_call


def test_counters_nest_and_leave_nothing_behind():
    model, x = network(), torch.zeros(3, 2)
    with count_network_calls(model) as outer:
        model(x, TIMES)
        with count_network_calls(ClippedScoreModel(model)) as inner:
            model(x, TIMES)
        model(x, TIMES)
    model(x, TIMES)
    assert (outer.calls, inner.calls) == (3, 1)
    with pytest.raises(ZeroDivisionError), count_network_calls(model):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def predicted(fraction=None, shape=(3, 2, 2)):
    x = torch.zeros(shape)
    return Prediction(x0=x, eps=x, sigma=torch.ones(3).double(), variance_fraction=fraction)


@pytest.mark.parametrize("sde_name", ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"])
def test_small_large_and_learned_variances(sde_name):
    sde = make_sde(sde_name)
    s, t = torch.tensor([0.04, 0.3, 0.5], dtype=torch.float64), TIMES
    small, large = sde.posterior_coefficients(s, t)[2], sde.transition_var(s, t)
    got = {kind: reverse_log_var(kind, predicted(), sde, s, t) for kind in ("small", "large")}
    for kind, expected in [("small", small), ("large", large)]:
        assert got[kind].shape == (3, 1, 1)
        assert got[kind].dtype == torch.float64
        torch.testing.assert_close(got[kind].exp().flatten(), expected, rtol=1e-12, atol=0)
    fraction = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    learned = reverse_log_var("learned", predicted(fraction), sde, s, t)
    # Nichol & Dhariwal 2021, Eq. 15: the geometric mean weighted by the fraction
    share = fraction.double()
    expected = large.reshape(-1, 1, 1) ** share * small.reshape(-1, 1, 1) ** (1 - share)
    torch.testing.assert_close(learned.exp(), expected, rtol=1e-12, atol=0)
    for value, kind in [(0.0, "small"), (1.0, "large")]:
        ends = reverse_log_var("learned", predicted(torch.full((3, 2, 2), value)), sde, s, t)
        assert torch.equal(ends, got[kind].expand(3, 2, 2))


def test_on_ho_table_they_are_beta_and_beta_tilde():
    sde = Tabulated.ddpm()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    rows = torch.tensor([1, 499, 999])
    t, s = (rows + 1).double() / 1000, rows.double() / 1000
    tilde = (1 - alpha_bar[rows - 1]) / (1 - alpha_bar[rows]) * betas[rows]
    large = reverse_log_var("large", predicted(), sde, s, t).exp().flatten()
    small = reverse_log_var("small", predicted(), sde, s, t).exp().flatten()
    torch.testing.assert_close(large, betas[rows], rtol=1e-10, atol=0)
    torch.testing.assert_close(small, tilde, rtol=1e-10, atol=0)


def test_unknown_or_unlearned_variances_are_refused():
    for kind in ("auto", "small", "large", "learned"):
        assert check_variance(kind) == kind
    with pytest.raises(ValueError) as error:
        check_variance("smal")
    assert str(error.value) == "unknown variance 'smal'; did you mean 'small'? choices: auto, large, learned, small"
    with pytest.raises(ValueError, match="'learned' needs a model that learns its variance; use 'small' or 'large'"):
        interpolate_log_var("learned", predicted(), torch.zeros(3), torch.zeros(3))


def test_a_condition_is_told_above_a_time_alone():
    """Each sample by its own time, and the time itself is not above."""
    mixture = LabelledMixtureScoreModel(
        VP(), means=torch.tensor([[-1.0], [2.0]]), covs=torch.ones(2, 1, 1), labels=[0, 1]
    )
    model = ToldAboveScoreModel(mixture, t_min=0.4)
    x_t, labels = torch.tensor([[0.3], [-0.2], [0.7]], dtype=torch.float64), torch.tensor([1, 1, 0])
    by_hand = mixture(x_t, TIMES, cond=torch.tensor([-1, -1, 0]))
    for cond in (labels, Condition(label=labels)):
        assert torch.equal(model(x_t, TIMES, cond=cond).x0, by_hand.x0)
    assert torch.equal(model(x_t, TIMES).eps, mixture(x_t, TIMES).eps)
    assert not torch.equal(by_hand.x0, mixture(x_t, TIMES, cond=labels).x0)


def test_a_condition_cannot_be_told_above_a_time_without_a_null_condition():
    network = NetworkScoreModel(MLP(2, num_classes=3, hidden=8), VP(), EpsParameterization())
    with pytest.raises(ValueError, match=r"t_min=0\.1 needs a network that is trained without its condition too"):
        ToldAboveScoreModel(network, t_min=0.1)
    for t_min in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"t_min must be within \[0, 1\), got {t_min}"):
            ToldAboveScoreModel(wide_model(VP()), t_min=t_min)
