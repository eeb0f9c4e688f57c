"""Linear operators: adjoints, functions of A A^T and pseudo-inverses against the operator's own matrix."""

import pytest
import torch

from models import operators
from models.operators import (
    CircularBlur,
    Downsampling,
    Grayscale,
    Identity,
    Inpainting,
    LinearOperator,
    MatrixOperator,
    available_operators,
    make_operator,
)

GENERATOR = torch.Generator().manual_seed(0)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


ALL = {
    "identity": Identity((2, 3, 4)),
    "half": Inpainting((2, 4, 6), hidden="right"),
    "center": make_operator("inpaint", shape=(1, 4, 6), hidden="center"),
    "mask of an image": Inpainting((2, 4, 5), mask=torch.arange(20).view(4, 5) % 3 == 0),
    "mask of all numbers": Inpainting((7,), mask=torch.tensor([True, False, True, True, False, False, True])),
    "downsample": Downsampling((2, 4, 6), factor=2),
    "gray": Grayscale((3, 3, 2)),
    "blur, even": CircularBlur((2, 6, 4), std=0.8),
    "blur, odd": CircularBlur((1, 5, 7), std=1.3),
    "kernel": CircularBlur((1, 6, 5), kernel=_random(3, 2)),
    "kernel with zeros in Fourier space": CircularBlur((1, 4, 4), kernel=torch.full((1, 2), 0.5)),
    "matrix": MatrixOperator(_random(3, 5)),
    "matrix of deficient rank": MatrixOperator(_random(4, 2) @ _random(2, 6), shape=(1, 2, 3)),
}


def test_every_registered_operator_is_tested() -> None:
    classes = {type(one) for one in ALL.values()}
    assert {operators.OPERATORS.get(name) for name in available_operators()} <= classes


def _matrix(operator: LinearOperator) -> torch.Tensor:
    size = int(torch.tensor(operator.shape).prod())
    columns = operator.forward(torch.eye(size, dtype=torch.float64).view(size, *operator.shape))
    return columns.flatten(1).T


@pytest.mark.parametrize("name", ALL)
def test_an_operator_is_its_matrix(name: str) -> None:
    operator = ALL[name]
    x, y = _random(3, *operator.shape), _random(3, *operator.observed_shape)
    matrix, flat = _matrix(operator), y.flatten(1)
    assert operator.forward(x).shape == y.shape
    assert operator.adjoint(y).shape == x.shape
    torch.testing.assert_close(operator.forward(x).flatten(1), x.flatten(1) @ matrix.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.adjoint(y).flatten(1), flat @ matrix, rtol=0, atol=1e-12)
    pinv = torch.linalg.pinv(matrix, rtol=1e-6)
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), flat @ pinv.T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_functions_of_the_gram_matrix_are_those_of_its_eigenvalues(name: str) -> None:
    operator = ALL[name]
    y, matrix = _random(3, *operator.observed_shape), _matrix(operator)
    eigenvalues, basis = torch.linalg.eigh(matrix @ matrix.T)
    scale = torch.tensor([0.5, 1.0, 3.0]).double()
    per_sample = scale.view(3, *[1] * len(operator.observed_shape))
    wanted = ((y.flatten(1) @ basis) / (scale[:, None] * eigenvalues + 0.1)) @ basis.T
    found = operator.gram(lambda e: 1 / (per_sample * e + 0.1), y)
    torch.testing.assert_close(found.flatten(1), wanted, rtol=0, atol=1e-10)
    logs = (scale[:, None] * eigenvalues + 0.1).log().sum(1)
    torch.testing.assert_close(operator.trace(lambda e: (per_sample * e + 0.1).log()), logs, rtol=0, atol=1e-9)
    torch.testing.assert_close(operator.trace(lambda e: e), matrix.square().sum().view(1), rtol=1e-9, atol=0)


def test_a_blur_keeps_constants_and_moves_nothing() -> None:
    blur = CircularBlur((1, 8, 8), std=1.0)
    torch.testing.assert_close(blur.forward(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[..., 3, 5] = 1
    spread = blur.forward(impulse)[0, 0]
    assert int(spread.argmax()) == 3 * 8 + 5
    torch.testing.assert_close(spread[2, 5], spread[4, 5])
    torch.testing.assert_close(spread[4, 5] / spread[3, 5], torch.tensor(0.5).neg().exp())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Inpainting((1, 4, 4)), "needs either a mask or hidden"),
        (
            lambda: Inpainting((1, 4, 4), mask=torch.ones(5, 5, dtype=torch.bool)),
            r"must be bool \[4, 4\] or \[1, 4, 4\]",
        ),
        (lambda: Inpainting((1, 4, 4), mask=torch.zeros(4, 4, dtype=torch.bool)), "the mask shows nothing of x"),
        (lambda: Inpainting((1, 4, 4), hidden="rigth"), "unknown hidden 'rigth'; did you mean 'right'"),
        (lambda: Inpainting((4,), hidden="right"), "are of images, got samples"),
        (lambda: Downsampling((1, 5, 4)), "factor must divide images of 5x4, got 2"),
        (lambda: Grayscale((1, 4, 4)), "of images of 3 channels, got 1"),
        (lambda: CircularBlur((1, 4, 4), std=0.0), "std must be above 0, got 0.0"),
        (lambda: CircularBlur((1, 4, 4), kernel=torch.ones(5, 1)), "a kernel must be at most"),
        (lambda: MatrixOperator(torch.ones(2, 3), shape=(4,)), r"matrix must be \[M, 4\]"),
        (lambda: make_operator("downsampling", shape=(1, 4, 4)), "unknown operator 'downsampling'; did you mean"),
        (lambda: Downsampling((1, 4, 4)).check(torch.ones(2, 1, 6, 4)), r"is of samples \[1, 4, 4\], got \[1, 6, 4\]"),
        (lambda: Identity((3,)).check_observed(torch.ones(2, 4)), r"gives observations \[3\], got \[4\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        build()  # type: ignore[operator]
    assert "\n" not in str(refused.value)
