"""Published tables: exact at t = (i + 1) / N, monotone in between."""

import mpmath
import numpy as np
import pytest
import torch

from sde_lib import VP, CosineVP, Tabulated, cosine_betas, ddpm_betas

SIZES = [10, 50, 1000, 4000]


def rows(size, dtype=torch.float64):
    return torch.tensor([(i + 1) / size for i in range(size)], dtype=torch.float64).to(dtype)


def linear_betas(size):
    """Ho et al. 2020, Section 4, in 50 digits from the ends' floats."""
    start, end = mpmath.mpf(1e-4), mpmath.mpf(0.02)
    return [start + (end - start) * i / (size - 1) for i in range(size)]


def cosine_betas_exact(size):
    """Nichol & Dhariwal 2021, Eq. 17 and the clipping below it."""

    def alpha_bar(i):
        s = mpmath.mpf(0.008)
        return mpmath.cos((mpmath.mpf(i) / size + s) / (1 + s) * mpmath.pi / 2) ** 2

    return [min(1 - alpha_bar(i) / alpha_bar(i - 1), mpmath.mpf(0.999)) for i in range(1, size + 1)]


def log_snr_rows(betas):
    alpha_bar, out = mpmath.mpf(1), []
    for beta in betas:
        alpha_bar *= 1 - beta
        out.append(float(mpmath.log(alpha_bar / (1 - alpha_bar))))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("build", "exact"), [("ddpm", linear_betas), ("improved_ddpm", cosine_betas_exact)])
def test_every_row_is_the_published_one(size, build, exact):
    with mpmath.workdps(50):
        expected = log_snr_rows(exact(size))
    sde = getattr(Tabulated, build)(num_steps=size)
    assert sde.table_size == size and sde.t_min == 1 / size
    for dtype in (torch.float64, torch.float32):
        t = rows(size, dtype)
        # betas near 0 are differences of cosines in float64
        torch.testing.assert_close(sde.log_snr(t), expected, rtol=0, atol=2e-11)
        torch.testing.assert_close(sde.alpha(t) ** 2, torch.sigmoid(expected), rtol=1e-10, atol=0)
        torch.testing.assert_close(sde.sigma(t) ** 2, torch.sigmoid(-expected), rtol=1e-10, atol=0)
        assert torch.equal(sde.log_snr(t), sde.log_snr_table)


def test_ho_table():
    betas = ddpm_betas()
    assert betas[0].item() == 1e-4
    assert betas[-1].item() == 0.02
    sde = Tabulated.ddpm()
    alpha_bar = sde.alpha(rows(1000)) ** 2
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-12)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-5)
    assert sde.sigma(rows(1000)[:1]).item() == pytest.approx(0.01, rel=1e-12)


def test_the_continuous_vp_sde_is_another_one():
    """The reason for ``Tabulated``: the limit of many steps is off by up to 0.095 in log-SNR."""
    t = rows(1000)
    miss = (VP().log_snr(t) - Tabulated.ddpm().log_snr(t)).abs()
    assert miss.max().item() == pytest.approx(0.095, abs=1e-3)
    assert VP().sigma(t[:1]).item() == pytest.approx(0.01049, abs=1e-5)


def test_the_cosine_table_is_the_cosine_sde_until_it_is_clipped():
    betas = cosine_betas()
    assert betas.max().item() == 0.999
    kept = int((betas < 0.999).sum())
    assert kept == 999
    t = rows(1000)[:kept]
    torch.testing.assert_close(Tabulated.improved_ddpm().log_snr(t), CosineVP().log_snr(t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_times_within_rounding_of_a_row_are_the_row(size, dtype):
    sde = Tabulated.ddpm(num_steps=size)
    exact = rows(size, dtype)
    up, down = (torch.nextafter(exact, torch.full_like(exact, limit)) for limit in (2.0, 0.0))
    for t in (up, down):
        assert torch.equal(sde.log_snr(t), sde.log_snr_table)


def test_small_float32_times_are_not_taken_as_zero():
    sde = Tabulated.ddpm()
    t = torch.tensor([1e-8, 1e-7, 1e-6], dtype=torch.float32)
    # below the first row sigma^2 is beta_1 N t
    torch.testing.assert_close(sde.sigma(t) ** 2, 0.1 * t.double(), rtol=1e-12, atol=0)
    assert sde.sigma(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("build", [Tabulated.ddpm, Tabulated.improved_ddpm, Tabulated.ncsn])
@pytest.mark.parametrize("size", [10, 50])
def test_between_rows_log_snr_neither_overshoots_nor_turns(build, size):
    sde = build(num_steps=size)
    for row in range(1, size):
        t = (row + torch.linspace(0, 1, 41, dtype=torch.float64)) / size
        log_snr = sde.log_snr(t)
        assert (log_snr.diff() < 0).all()
        assert log_snr[0] == sde.log_snr_table[row - 1]
        assert log_snr[-1] == sde.log_snr_table[row]


def test_below_the_first_row_the_variance_is_proportional_to_time():
    share = torch.tensor([0.0, 1e-6, 0.1, 0.5, 1.0], dtype=torch.float64)
    vp, ve = Tabulated.ddpm(num_steps=50), Tabulated.ncsn(num_steps=10)
    torch.testing.assert_close(vp.sigma(share / 50) ** 2, 1e-4 * share, rtol=1e-12, atol=0)
    torch.testing.assert_close(vp.alpha(share / 50) ** 2, 1 - 1e-4 * share, rtol=1e-14, atol=0)
    torch.testing.assert_close(ve.sigma(share / 10), 0.01 * share.sqrt(), rtol=1e-12, atol=0)


def test_the_inverse_finds_the_rows():
    for sde in (Tabulated.ddpm(), Tabulated.ncsn(), Tabulated.improved_ddpm(num_steps=50)):
        t = rows(sde.table_size)
        torch.testing.assert_close(sde.time_from_log_snr(sde.log_snr_table), t, rtol=4e-15, atol=0)
        assert torch.equal(sde.log_snr(sde.time_from_log_snr(sde.log_snr_table)), sde.log_snr_table)


@pytest.mark.parametrize("levels", [[1.0, 0.5, 0.1, 0.01], [0.01, 0.1, 0.5, 1.0]])
def test_ncsn_levels_in_either_order(levels):
    sde = Tabulated.from_sigmas(levels)
    torch.testing.assert_close(sde.sigma(rows(4)), torch.tensor(sorted(levels)).double(), rtol=1e-7, atol=0)
    assert sde.alpha(rows(4)).tolist() == [1, 1, 1, 1]
    assert sde.prior_std == pytest.approx(1.0)


def test_ncsn_is_geometric():
    """Song & Ermon 2019, Section 5: ten levels from 1 to 0.01."""
    sigma = Tabulated.ncsn(num_steps=10, sigma_max=1.0).sigma(rows(10))
    np.testing.assert_allclose(sigma, np.geomspace(0.01, 1, 10), rtol=1e-14)


def test_tables_of_any_container_are_copied():
    betas = np.linspace(1e-3, 0.1, 7)
    sde = Tabulated.from_betas(betas)
    before = sde.log_snr(rows(7)).clone()
    betas[:] = 0.5
    assert torch.equal(sde.log_snr(rows(7)), before)
    assert torch.equal(Tabulated.from_betas(np.linspace(1e-3, 0.1, 7).tolist()).log_snr(rows(7)), before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tabulated.from_betas([0.1, 1.0]), "strictly between 0 and 1; clip"),
        (lambda: Tabulated.from_betas([0.0, 0.1]), "strictly between 0 and 1"),
        (lambda: Tabulated.from_betas([0.1]), "at least 2 numbers, got shape \\[1\\]"),
        (lambda: Tabulated.from_betas([[0.1, 0.2]]), "vector of at least 2 numbers, got shape \\[1, 2\\]"),
        (lambda: Tabulated.from_sigmas([0.0, 1.0]), "must be positive, got 0.0"),
        (lambda: Tabulated.from_sigmas([1.0, 1.0]), "drop repeats"),
        (lambda: Tabulated([1.0, 2.0], family="vp"), "must be finite and fall"),
        (lambda: Tabulated([1.0, float("nan")], family="vp"), "must be finite and fall"),
        (lambda: Tabulated([2.0, 1.0], family="subvp"), "family must be 'vp' or 've', got 'subvp'"),
    ],
)
def test_no_table_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
