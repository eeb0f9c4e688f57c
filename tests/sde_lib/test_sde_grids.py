"""Time grids against the formulas and the published code they are taken from."""

import numpy as np
import pytest
import torch
from thinning import only

from sde_lib import VE, VP, CosineVP, Tabulated, available_grids, check_grid, make_grid
from sde_lib.grids import karras_grid

NAMES = ["karras", "leading", "log_snr", "quadratic", "trailing", "uniform"]


def last_noisy(sde):
    """The last time of the grids that are placed by noise level, before t = 0 is added."""
    return 0.0 if torch.isfinite(sde.log_snr(torch.zeros(1, dtype=torch.float64))) else sde.t_min


def test_the_names():
    assert available_grids() == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", only((1, 10), [1, 2, 7, 10, 250, 1000]))
def test_length_direction_and_ends(sde, name, num_steps):
    size = sde.table_size or 1000
    if name in ("leading", "trailing") and num_steps > size:
        with pytest.raises(ValueError, match=f"at most the table's {size} rows, got {num_steps}; lower num_steps"):
            make_grid(name, sde, num_steps)
        return
    grid = make_grid(name, sde, num_steps)
    assert grid.dtype == torch.float64
    assert grid.shape == (num_steps + 1,)
    assert (grid.diff() < 0).all()
    assert grid[-1].item() == 0
    if name != "leading":
        assert grid[0].item() == sde.t_max
    assert grid[0].item() <= sde.t_max


@pytest.mark.parametrize("size", [10, 50, 1000, 4000])
def test_uniform_on_a_table_is_its_rows(size):
    grid = make_grid("uniform", Tabulated.ddpm(num_steps=size), size)
    assert grid.tolist() == [(i + 1) / size for i in reversed(range(size))] + [0.0]


@pytest.mark.parametrize("name", ["trailing", "leading"])
def test_all_rows_are_the_whole_table(name):
    sde = Tabulated.ddpm()
    assert torch.equal(make_grid(name, sde, 1000), make_grid("uniform", sde, 1000))


def test_uniform_and_quadratic_are_powers():
    sde = CosineVP()
    n = 9
    expected = np.array([(n - i) / n for i in range(n + 1)])
    np.testing.assert_allclose(make_grid("uniform", sde, n), 0.999 * expected, rtol=1e-15)
    np.testing.assert_allclose(make_grid("quadratic", sde, n), 0.999 * expected**2, rtol=1e-14)


def trailing_rows(table_size, num_steps):
    """diffusers, ``timestep_spacing="trailing"``; index 0 is the first row."""
    ratio = table_size / num_steps
    return np.round(np.arange(table_size, 0, -ratio)).astype(np.int64) - 1


def leading_rows(table_size, num_steps):
    """diffusers, ``timestep_spacing="leading"``, which is DDIM's ``range(0, N, N // n)`` where n divides N."""
    ratio = table_size // num_steps
    return (np.arange(0, num_steps) * ratio).round()[::-1].astype(np.int64)


@pytest.mark.parametrize(("name", "published"), [("trailing", trailing_rows), ("leading", leading_rows)])
@pytest.mark.parametrize("size", [50, 1000])
def test_rows_are_those_of_published_samplers(name, published, size):
    sde = Tabulated.ddpm(num_steps=size)
    for num_steps in range(1, size + 1, 1 if size == 50 else 7):
        grid = make_grid(name, sde, num_steps)
        index = (grid[:-1] * size).round().long() - 1
        # by rounding, numpy's arange sometimes holds its end point, which is no row
        assert index.tolist() == published(size, num_steps)[:num_steps].tolist(), num_steps
        assert torch.equal(grid[:-1], (index + 1).double() / size)


def test_leading_is_the_list_of_ddim():
    for num_steps in (10, 20, 50, 100):
        index = (make_grid("leading", Tabulated.ddpm(), num_steps)[:-1] * 1000).round().long() - 1
        assert index.tolist() == list(reversed(range(0, 1000, 1000 // num_steps)))


@pytest.mark.parametrize("num_steps", [48, 96, 112])
def test_trailing_rounds_halves_as_published(num_steps):
    index = (make_grid("trailing", Tabulated.ddpm(), num_steps)[:-1] * 1000).round().long() - 1
    assert index.tolist() == trailing_rows(1000, num_steps).tolist()


def noise_to_signal(sde, grid):
    return torch.exp(-0.5 * sde.log_snr(grid)).numpy()


def noisy_part(sde, grid):
    """The times with noise: all for an SDE that keeps some at t = 0, else all but the last."""
    return grid if last_noisy(sde) == 0 else grid[:-1]


@pytest.mark.parametrize("num_steps", [2, 5, 18, 40])
def test_karras_is_equation_5(sde, num_steps):
    grid = noisy_part(sde, make_grid("karras", sde, num_steps))
    ends = torch.tensor([sde.t_max, last_noisy(sde)], dtype=torch.float64)
    high, low = noise_to_signal(sde, ends)
    n, rho = len(grid), 7
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    np.testing.assert_allclose(noise_to_signal(sde, grid), expected, rtol=1e-11)


def test_karras_on_ve_is_the_list_of_edm():
    """Eq. 5 with sigma_min 0.002, sigma_max 80, rho 7 and N = 18, in sigma itself."""
    sde = VE(sigma_min=0.002, sigma_max=80.0)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sde.sigma(make_grid("karras", sde, 17)), expected, rtol=1e-12)
    cubed = (80 ** (1 / 3) + i / 17 * (0.002 ** (1 / 3) - 80 ** (1 / 3))) ** 3
    np.testing.assert_allclose(sde.sigma(karras_grid(sde, 17, rho=3.0)), cubed, rtol=1e-11)


@pytest.mark.parametrize("num_steps", [3, 20])
def test_log_snr_steps_are_equal(sde, num_steps):
    grid = noisy_part(sde, make_grid("log_snr", sde, num_steps))
    log_snr = sde.log_snr(grid)
    steps = log_snr.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=0)
    assert grid[-1].item() == last_noisy(sde)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_no_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, a whole number, got {num_steps}"):
        make_grid("uniform", VP(), num_steps)


def test_an_unknown_grid_lists_the_choices():
    with pytest.raises(ValueError) as error:
        make_grid("unifrom", VP(), 10)
    assert str(error.value) == f"unknown grid 'unifrom'; did you mean 'uniform'? choices: {', '.join(NAMES)}"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0], r"at least 2 times, got shape \[1\]"),
        ([[1.0, 0.0]], r"at least 2 times, got shape \[1, 2\]"),
        ([0.0, 0.5, 1.0], "sort them in descending order"),
        ([1.0, 0.5, 0.5, 0.0], "drop repeats"),
        ([1.2, 0.0], r"lie in \[0, 1\], got 0 to 1.2"),
        ([999.0, 0.0], r"lie in \[0, 1\], got 0 to 999"),
        ([1.0, -0.1], r"lie in \[0, 1\]"),
        ([1.0, float("nan"), 0.0], r"lie in \[0, 1\]"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(grid, message):
    with pytest.raises(ValueError, match=message) as error:
        check_grid(torch.tensor(grid))
    assert "\n" not in str(error.value)


def test_a_grid_is_taken_as_float64_on_the_cpu():
    grid = check_grid(torch.tensor([1.0, 0.25, 0.0], requires_grad=True))
    assert grid.dtype == torch.float64
    assert not grid.requires_grad
    assert grid.tolist() == [1.0, 0.25, 0.0]
