"""Linear operators y = A x: what is observed of data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from data.conditions import LUMINANCE, seen_part
from runtime.options import ShowsOptions, whole_number
from runtime.registry import Registry

# relative to the largest eigenvalue of A A^T: what is below is taken for zero
_SMALLEST = 1e-10

# of the eigenvalues of A A^T, to numbers that fit y or its coefficients
Spectral = Callable[[Tensor], Tensor]


class LinearOperator(ShowsOptions, ABC):
    """y = A x of one sample, for batches.

    Everything that inverse problems ask of A is its forward map, its adjoint, and functions of A A^T, which is
    U diag(e) U^T with an orthogonal U: e are the squared singular values.

    Args:
        shape: Shape of a sample x.

    Attributes:
        observed_shape: Shape of an observation y.
    """

    observed_shape: tuple[int, ...]

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *observed"]:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch *shape"]:
        """A^T y, with <A x, y> = <x, A^T y>."""

    @abstractmethod
    def gram(self, function: Spectral, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch *observed"]:
        """f(A A^T) y = U diag(f(e)) U^T y.

        Args:
            function: f, from the eigenvalues e to numbers of the same shape, or with a batch dimension [B, 1, ...].
            y: Observations.
        """

    @abstractmethod
    def trace(self, function: Spectral) -> Float[Tensor, " batch"]:
        """tr f(A A^T), the sum of f(e) over all eigenvalues, float64 [B], [1] where f has no batch dimension."""

    def pseudo_inverse(self, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch *shape"]:
        """A^+ y: of all x with the least |A x - y| the shortest one."""
        return self.adjoint(self.gram(_reciprocal, y))

    def check(self, x: Tensor) -> None:
        """Refuse samples of another shape.

        Raises:
            ValueError: In one line.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"{self} is of samples {list(self.shape)}, got {list(x.shape[1:])}; build one of that shape"
            )

    def check_observed(self, y: Tensor) -> None:
        """Refuse observations of another shape.

        Raises:
            ValueError: In one line.
        """
        if tuple(y.shape[1:]) != self.observed_shape:
            raise ValueError(
                f"{self} gives observations {list(self.observed_shape)}, got {list(y.shape[1:])}; observe with it"
            )


def _reciprocal(e: Tensor) -> Tensor:
    """1 / e, and 0 where e is 0."""
    zero = e <= _SMALLEST * e.max()
    return torch.where(zero, 0.0, 1 / e.masked_fill(zero, 1.0))


class _Scaled(LinearOperator):
    """An operator with A A^T = e I."""

    eigenvalue: float = 1.0

    def gram(self, function: Spectral, y: Tensor) -> Tensor:
        """f(e) y."""
        factor = function(torch.tensor(self.eigenvalue, dtype=torch.float64, device=y.device)).to(y.dtype)
        return factor.view(-1, *[1] * (y.ndim - 1)) * y

    def trace(self, function: Spectral) -> Tensor:
        """M f(e)."""
        factor = function(torch.tensor(self.eigenvalue, dtype=torch.float64))
        return math.prod(self.observed_shape) * factor.flatten()


OPERATORS: Registry[LinearOperator] = Registry("operator")
register_operator, available_operators, make_operator = OPERATORS.register, OPERATORS.names, OPERATORS.make


@register_operator("identity")
class Identity(_Scaled):
    """y = x: with noise, denoising.

    Args:
        shape: Shape of a sample.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.observed_shape = self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """y."""
        return y


@register_operator("inpaint")
class Inpainting(_Scaled):
    """The numbers of x that a mask shows, as a vector [B, M].

    Args:
        shape: Shape of a sample, (C, H, W) for images.
        mask: True where x is seen; of ``shape``, or [H, W] for all channels of an image.
        hidden: In place of a mask of an image: left, right, top or bottom half, or center, the middle half of each
            side.

    Raises:
        ValueError: If neither or both are given, or the mask does not fit or shows nothing.
    """

    def __init__(
        self, shape: Sequence[int], *, mask: Bool[Tensor, "*shape"] | None = None, hidden: str | None = None
    ) -> None:
        super().__init__(shape)
        if (mask is None) == (hidden is None):
            raise ValueError(
                "an inpainting operator needs either a mask or hidden, got both or none; pass hidden=right"
            )
        self.hidden = hidden
        if mask is None:
            if len(self.shape) < 2:
                raise ValueError(
                    f"parts such as hidden={hidden} are of images, got samples {list(self.shape)}; pass a mask"
                )
            height, width = self.shape[-2:]
            mask = seen_part(height, width, str(hidden))
        if mask.dtype != torch.bool or tuple(mask.shape) not in (self.shape, self.shape[-2:]):
            raise ValueError(
                f"a mask must be bool {list(self.shape[-2:])} or {list(self.shape)}, got {mask.dtype} "
                f"{list(mask.shape)}; resize it"
            )
        self.mask = mask.expand(self.shape)
        self._seen = self.mask.flatten().nonzero().flatten()
        if not len(self._seen):
            raise ValueError("the mask shows nothing of x; True is what is seen")
        self.observed_shape = (len(self._seen),)

    def forward(self, x: Tensor) -> Tensor:
        """The numbers that are seen, in the order of x."""
        return x.flatten(1)[:, self._seen.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        """The numbers in their places, and zeros where x is hidden."""
        x = y.new_zeros(len(y), math.prod(self.shape))
        return x.index_copy(1, self._seen.to(y.device), y).view(-1, *self.shape)


@register_operator("downsample")
class Downsampling(_Scaled):
    """The mean of each box of pixels.

    Args:
        shape: (C, H, W).
        factor: Pixels of a side of a box, at least 2; it divides H and W.

    Raises:
        ValueError: If it does not.
    """

    def __init__(self, shape: Sequence[int], *, factor: int = 2) -> None:
        super().__init__(shape)
        self.factor = whole_number("factor", factor, least=2, fix="pass 2")
        channels, height, width = _image(self.shape, "downsample")
        if height % self.factor or width % self.factor:
            raise ValueError(f"factor must divide images of {height}x{width}, got {factor}; pass one of both")
        self.observed_shape = (channels, height // self.factor, width // self.factor)
        self.eigenvalue = self.factor**-2

    def forward(self, x: Tensor) -> Tensor:
        """Means over boxes."""
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each number over its box, divided by the number of pixels."""
        spread = y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
        return spread * self.eigenvalue


@register_operator("gray")
class Grayscale(_Scaled):
    """The luminance 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    Args:
        shape: (3, H, W).

    Raises:
        ValueError: If it is none of colour.
    """

    weights = tuple(share / 1000 for share in LUMINANCE)

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        channels, height, width = _image(self.shape, "gray")
        if channels != 3:
            raise ValueError(f"operator gray is of images of 3 channels, got {channels}; choose another one")
        self.observed_shape = (1, height, width)
        self.eigenvalue = sum(weight**2 for weight in self.weights)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum of the channels."""
        return (x * self._weights(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """The weights times y."""
        return y * self._weights(y)

    def _weights(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.weights).view(3, 1, 1)


@register_operator("blur")
class CircularBlur(LinearOperator):
    """Convolution of each channel with a kernel, the image being continued periodically; in Fourier space a product.

    Args:
        shape: (C, H, W).
        std: Standard deviation in pixels of a Gaussian kernel of sum 1, above 0.
        kernel: In place of it a kernel [h, w], no larger than the image; its origin is at [h // 2, w // 2].

    Raises:
        ValueError: If the kernel does not fit, or std is not above 0.
    """

    def __init__(
        self, shape: Sequence[int], *, std: float = 1.0, kernel: Float[Tensor, "height width"] | None = None
    ) -> None:
        super().__init__(shape)
        _, height, width = _image(self.shape, "blur")
        if kernel is None:
            if not 0 < std < math.inf:
                raise ValueError(f"std must be above 0, got {std}; 1 is one pixel")
            kernel = torch.outer(_gaussian(height, std), _gaussian(width, std))
        if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
            raise ValueError(f"a kernel must be at most [{height}, {width}], got {list(kernel.shape)}; crop it")
        self.std, self.observed_shape = std, self.shape
        middle = (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2))
        padded = F.pad(kernel.double(), (0, width - kernel.shape[1], 0, height - kernel.shape[0]))
        self._transfer = torch.fft.rfft2(padded.roll(middle, (0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """The circular convolution."""
        return self._multiplied(x, self._transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        """The circular correlation."""
        return self._multiplied(y, self._transfer.conj())

    def gram(self, function: Spectral, y: Tensor) -> Tensor:
        """f(|transfer|^2) in Fourier space."""
        return self._multiplied(y, function(self._transfer.abs().square().to(y.device)))

    def trace(self, function: Spectral) -> Tensor:
        """The sum over all frequencies, those of the other half of the plane too, and channels."""
        channels, _, width = self.shape
        values = function(self._transfer.abs().square())
        twice = torch.full((values.shape[-1],), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if width % 2 == 0:
            twice[-1] = 1.0
        return channels * (values * twice).sum((-2, -1)).flatten()

    def _multiplied(self, x: Tensor, factor: Tensor) -> Tensor:
        product = torch.fft.rfft2(x.double()) * factor.to(x.device)
        return torch.fft.irfft2(product, s=x.shape[-2:]).to(x.dtype)


def _gaussian(size: int, std: float) -> Tensor:
    """A Gaussian of sum 1 around its middle, as long as fits an odd length."""
    length = size - 1 + size % 2
    at = torch.arange(length, dtype=torch.float64) - length // 2
    weights = (-0.5 * (at / std).square()).exp()
    return weights / weights.sum()


class MatrixOperator(LinearOperator):
    """A given matrix.

    Args:
        matrix: A, [M, D].
        shape: Shape of a sample, of D numbers; None for vectors.

    Raises:
        ValueError: If the sizes do not fit.
    """

    def __init__(self, matrix: Float[Tensor, "observed dim"], *, shape: Sequence[int] | None = None) -> None:
        super().__init__((matrix.shape[-1],) if shape is None else shape)
        if matrix.ndim != 2 or matrix.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"matrix must be [M, {math.prod(self.shape)}] for samples {list(self.shape)}, got "
                f"{list(matrix.shape)}; one row a number of y"
            )
        self.matrix = matrix.double()
        self.observed_shape = (len(matrix),)
        eigenvalues, self._basis = torch.linalg.eigh(self.matrix @ self.matrix.mT)
        self._eigenvalues = eigenvalues.clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        return (y @ self.matrix.to(y)).view(-1, *self.shape)

    def gram(self, function: Spectral, y: Tensor) -> Tensor:
        """f(A A^T) y."""
        basis = self._basis.to(y.device)
        return (((y.double() @ basis) * function(self._eigenvalues.to(y.device))) @ basis.mT).to(y.dtype)

    def trace(self, function: Spectral) -> Tensor:
        """The sum of f(e)."""
        return torch.atleast_1d(function(self._eigenvalues).sum(-1))


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"operator {name} is of images (C, H, W), got samples {list(shape)}; choose another one")
    return shape
