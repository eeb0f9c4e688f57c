"""Exact scores of conditional distributions: the oracles that conditions and guidance are proven against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sde_lib import SDE, check_per_sample

from .condition import Cond, Condition, label_of
from .exact import GaussianMixtureScoreModel, eigen_of_cov
from .noisy_classifier import grad_of_class
from .prediction import Prediction
from .score_model import ScoreModel


class LabelledMixtureScoreModel(GaussianMixtureScoreModel):
    """The exact score of a Gaussian mixture whose components belong to classes.

    Told a label c it is the score of p_t(x | c), the mixture of that class's components; told none, or -1, that of
    p_t(x) = sum_c p(c) p_t(x | c), where p(c) is the sum of the class's weights.

    Args:
        sde: The SDE.
        means: [K, D].
        covs: Symmetric, positive semi-definite, [K, D, D].
        labels: The class of each component, K whole numbers that cover 0 .. C - 1.
        weights: [K], sum 1; equal weights if None.

    Raises:
        ValueError: If the mixture is none, or the labels do not fit its components.
    """

    labels: Tensor

    def __init__(
        self,
        sde: SDE,
        *,
        means: Tensor,
        covs: Tensor,
        labels: Tensor | Sequence[int],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(sde, means=means, covs=covs, weights=weights)
        classes = torch.as_tensor(labels, dtype=torch.int64)
        self.num_classes = len(classes.unique())
        if classes.shape != (len(means),) or sorted(set(classes.tolist())) != list(range(self.num_classes)):
            raise ValueError(
                f"labels must name the class of each of {len(means)} components, from 0 without a gap, "
                f"got {classes.tolist()}; number the classes anew"
            )
        self.register_buffer("labels", classes)

    def class_probs(self) -> Float[Tensor, " classes"]:
        """p(c), float64 [C]."""
        return torch.zeros_like(self.log_weights[: self.num_classes]).index_add(0, self.labels, self.log_weights.exp())

    def log_prob(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"], *, cond: Cond | None = None
    ) -> Float[Tensor, " batch"]:
        """log p_t(x | c) in nats, float64 [B]; log p_t(x) where no class is given."""
        if cond is None:
            return super().log_prob(x, t)
        label = self._checked(cond, len(x))
        of_class = torch.where(label < 0, 0.0, self.class_probs().log()[label.clamp(min=0)])
        log_density = self._components(x, self.sde.alpha(t), self.sde.sigma(t))[2]
        return (log_density + self._log_chosen(label)).logsumexp(1) - of_class

    def class_log_prob(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """The exact noisy classifier: log p(c | x_t) of every class, float64 [B, C]."""
        every = torch.arange(self.num_classes, device=x.device)
        log_density = self._components(x, self.sde.alpha(t), self.sde.sigma(t))[2]
        return (log_density[:, None] + self._log_chosen(every)).logsumexp(2).log_softmax(1)

    def grad_log_prob(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"], label: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """The gradient of log p(label | x_t) with respect to x_t, as ``NoisyClassifier.grad_log_prob`` gives it."""
        return grad_of_class(lambda x: self.class_log_prob(x, t), x, label)

    def of_class(self, label: int) -> GaussianMixtureScoreModel:
        """The mixture of one class alone."""
        mine = self.labels == label
        weights = self.log_weights[mine].softmax(0)
        return GaussianMixtureScoreModel(self.sde, means=self.means[mine], covs=self.covs()[mine], weights=weights)

    def _log_share(self, log_density: Tensor, cond: Cond | None) -> Tensor:
        if cond is None:
            return log_density
        return log_density + self._log_chosen(self._checked(cond, len(log_density)))

    def _log_chosen(self, label: Int64[Tensor, " batch"]) -> Float[Tensor, "batch components"]:
        """0 for the components of each label's class, or of all for -1, and -inf for the others."""
        chosen = (label[:, None] == self.labels) | (label[:, None] < 0)
        return torch.zeros_like(chosen, dtype=torch.float64).masked_fill(~chosen, -torch.inf)

    def _checked(self, cond: Cond, batch: int) -> Tensor:
        label = label_of(cond)
        assert label is not None  # label_of refuses a condition without one
        check_per_sample("cond", label, batch)
        if bool(((label < -1) | (label >= self.num_classes)).any()):
            raise ValueError(
                f"labels must lie in [-1, {self.num_classes - 1}], got {int(label.min())} to {int(label.max())}; "
                "-1 is no class"
            )
        return label


class LinearGaussianScoreModel(ScoreModel):
    """The exact score of x | c ~ N(W c + b, C), with c ~ N(m, S) where a sample is told no condition.

    c is ``Condition.values``, or ``Condition.image`` flattened. Super-resolution of Gaussian images is a case of it:
    for y = A x + n of x ~ N(mean, cov) and n ~ N(0, s^2 I) it is W = cov A^T (A cov A^T + s^2 I)^-1,
    b = mean - W A mean and C = (I - W A) cov (``GaussianMixtureScoreModel.posterior``).

    Args:
        sde: The SDE.
        weight: W, [D, K].
        bias: b, [D].
        cov: C, symmetric and positive semi-definite, [D, D].
        cond_mean: m, [K]; zeros if None.
        cond_cov: S, symmetric and positive semi-definite, [K, K]; the identity if None.

    Raises:
        ValueError: If the shapes disagree or a matrix is no covariance.
    """

    weight: Tensor
    bias: Tensor
    cond_mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(
        self,
        sde: SDE,
        *,
        weight: Tensor,
        bias: Tensor,
        cov: Tensor,
        cond_mean: Tensor | None = None,
        cond_cov: Tensor | None = None,
    ) -> None:
        super().__init__(sde)
        weight, bias, cov = weight.double(), bias.double(), cov.double()
        size, told = weight.shape
        m = torch.zeros(told, dtype=torch.float64) if cond_mean is None else cond_mean.double()
        spread = torch.eye(told, dtype=torch.float64) if cond_cov is None else cond_cov.double()
        shapes = [list(one.shape) for one in (bias, cov, m, spread)]
        if shapes != [[size], [size, size], [told], [told, told]]:
            raise ValueError(
                f"of weight [{size}, {told}], bias, cov, cond_mean and cond_cov must be [{size}], [{size}, {size}], "
                f"[{told}] and [{told}, {told}], got {shapes}; give them these shapes"
            )
        eigen_of_cov("cond_cov", spread[None])
        # that of a sample with its condition, and that of one without
        eigenvalues, eigenvectors = eigen_of_cov("cov", torch.stack([cov, cov + weight @ spread @ weight.mT]))
        for name, tensor in {"weight": weight, "bias": bias, "cond_mean": m}.items():
            self.register_buffer(name, tensor)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """E[x0 | x_t, c] and E[eps | x_t, c], for x_t of any shape with D numbers a sample."""
        check_per_sample("t", t, x_t.shape[0])
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        told = self._told(cond, len(x_t))
        which = told.isnan().any(1).long()
        eigenvalues, eigenvectors = self.eigenvalues[which], self.eigenvectors[which]
        mean = torch.where(told.isnan(), self.cond_mean, told) @ self.weight.mT + self.bias
        rotated = torch.einsum("bd,bde->be", x_t.double().flatten(1) - alpha * mean, eigenvectors)
        whitened = rotated / (alpha.square() * eigenvalues + sigma.square())
        x0 = mean + alpha * torch.einsum("be,bde->bd", eigenvalues * whitened, eigenvectors)
        eps = sigma * torch.einsum("be,bde->bd", whitened, eigenvectors)
        x0, eps = (answer.reshape(x_t.shape).to(x_t.dtype) for answer in (x0, eps))
        return Prediction(x0=x0, eps=eps, sigma=sigma[:, 0])

    def _told(self, cond: Cond | None, batch: int) -> Float[Tensor, "batch numbers"]:
        """c of each sample, NaN throughout where there is none."""
        if cond is None:
            return torch.full((batch, len(self.cond_mean)), torch.nan, dtype=torch.float64, device=self.bias.device)
        given = cond.given if isinstance(cond, Condition) else {"label": cond}
        if set(given) not in ({"values"}, {"image"}):
            names = ", ".join(given)
            raise ValueError(f"this model is told values or an image, got {names}; pass Condition(values=...)")
        (told,) = (value.double().flatten(1) for value in given.values())
        if told.shape != (batch, len(self.cond_mean)):
            raise ValueError(
                f"the condition must have {len(self.cond_mean)} numbers for each of {batch} samples, "
                f"got {list(told.shape)}; give one row a sample"
            )
        # a row is told whole or not at all
        return told.masked_fill(told.isnan().any(1, keepdim=True), torch.nan)


class ObservedGaussianScoreModel(ScoreModel):
    """The exact score of x ~ N(mean, cov) that is told y_s = alpha_s A x + sigma_s eps, at any noise level s.

    y_s is ``Condition.image`` flattened, or A times it where the image is as large as x, as ``LowResolution`` tells its
    means; its level is ``Condition.image_log_snr``, without which y = A x is told. A sample that is told nothing has
    x ~ N(mean, cov). Given y_s, with S = A cov A^T and gain G = alpha_s cov A^T (alpha_s^2 S + sigma_s^2 I)^-1,

        x ~ N(mean + G (y_s - alpha_s A mean), cov - alpha_s G A cov).

    Args:
        sde: The SDE, of the noise on y too.
        mean: [D].
        cov: Symmetric and positive semi-definite, [D, D].
        operator: A, [M, D], with A cov A^T of full rank.

    Raises:
        ValueError: If the shapes disagree or cov is no covariance.
    """

    mean: Tensor
    cov: Tensor
    operator: Tensor

    def __init__(self, sde: SDE, *, mean: Tensor, cov: Tensor, operator: Tensor) -> None:
        super().__init__(sde)
        size = len(mean)
        if mean.ndim != 1 or cov.shape != (size, size) or operator.ndim != 2 or operator.shape[1] != size:
            shapes = [list(one.shape) for one in (mean, cov, operator)]
            raise ValueError(f"mean, cov and operator must be [D], [D, D] and [M, D], got {shapes}; make them fit")
        eigen_of_cov("cov", cov.double()[None])
        for name, tensor in {"mean": mean, "cov": cov, "operator": operator}.items():
            self.register_buffer(name, tensor.double())

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """E[x0 | x_t, y_s] and E[eps | x_t, y_s], for x_t of any shape with D numbers a sample."""
        check_per_sample("t", t, x_t.shape[0])
        alpha, sigma = self.sde.alpha(t).double(), self.sde.sigma(t).double()
        mean, cov = self.given(cond, len(x_t))
        offset = x_t.double().flatten(1) - alpha[:, None] * mean
        power = alpha[:, None, None].square() * cov + torch.diag_embed(sigma.square()[:, None].expand_as(mean))
        whitened = torch.linalg.solve(power, offset)
        x0 = mean + alpha[:, None] * torch.einsum("bde,be->bd", cov, whitened)
        x0, eps = (one.reshape(x_t.shape).to(x_t.dtype) for one in (x0, sigma[:, None] * whitened))
        return Prediction(x0=x0, eps=eps, sigma=sigma)

    def given(self, cond: Cond | None, batch: int) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim dim"]]:
        """Mean and covariance of x given what a batch is told, float64 [B, D] and [B, D, D]."""
        if cond is None:
            return self.mean.expand(batch, -1), self.cov.expand(batch, -1, -1)
        if not isinstance(cond, Condition) or cond.image is None:
            raise ValueError("this model is told an image, got none; pass Condition(image=...)")
        y = cond.image.double().flatten(1)
        if y.shape[1] == len(self.mean):
            y = y @ self.operator.mT
        alpha, var = torch.ones(batch, dtype=torch.float64, device=y.device), y.new_zeros(batch)
        if cond.image_log_snr is not None:
            alpha, sigma = self.sde.alpha_sigma(self.sde.time_from_log_snr(cond.image_log_snr.double()))
            var = sigma.square()
        crossed = alpha[:, None, None] * (self.cov @ self.operator.mT)
        noise = torch.diag_embed(var[:, None].expand_as(y))
        gain = torch.linalg.solve(alpha[:, None, None] * self.operator @ crossed + noise, crossed.mT).mT
        offset = y - alpha[:, None] * (self.operator @ self.mean)
        return self.mean + torch.einsum("bdm,bm->bd", gain, offset), self.cov - gain @ crossed.mT
