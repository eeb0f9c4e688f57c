"""Models of the posterior p(x0 | y) of y = A x0 + noise, made of a model of p(x0): wrappers that any sampler runs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import whole_number
from runtime.registry import Registry
from sde_lib import check_grid, check_per_sample, expand_like

from ..condition import Cond, Condition
from ..operators import LinearOperator
from ..prediction import Prediction
from ..score_model import ScoreModel, require_posterior_mean
from .guidance import step_of
from .twist import Twist

# J^T v of the Jacobian J = d x0 / d x_t, [B, ...] to [B, ...]
TransposedJacobian = Callable[[Tensor], Tensor]


class ObservedScoreModel(ScoreModel):
    """A model whose answers are drawn towards a measurement y = A x0 + n, n ~ N(0, noise_std^2 I).

    With the likelihood's gradient g, an approximation of grad log p(y | x_t), in any sampler

        x0' = x0 + (sigma^2 / alpha) g,   eps' = eps - sigma g.

    y is ``Condition.measurement``, one a sample; all else that a condition says is told to the model. NFE counts one
    call; passes backwards, each of which costs more than a call, are not counted. A sample whose x_t holds no signal is
    left as it is. Bounds of x0 belong around this model, not into it, where they would cut the gradient.

    Args:
        model: The model of p(x0), which may be guided.
        operator: A.
        noise_std: Standard deviation of n, at least 0.

    Raises:
        ValueError: If noise_std is negative, or 0 for a method that divides by it.
    """

    # whether noise_std may be 0
    noiseless: bool = True
    # whether g takes the Jacobian
    differentiates: bool = True

    def __init__(self, model: ScoreModel, operator: LinearOperator, *, noise_std: float) -> None:
        super().__init__(model.sde)
        require_posterior_mean(model, type(self).__name__)
        if not 0 <= noise_std < math.inf or (noise_std == 0 and not self.noiseless):
            least = "at least 0" if self.noiseless else "above 0"
            raise ValueError(f"noise_std of {type(self).__name__} must be {least}, got {noise_std:g}; 0.05 is little")
        self.model, self.operator, self.noise_std = model, operator, noise_std

    @abstractmethod
    def change(
        self,
        misfit: Tensor,
        sigma_sq_over_alpha: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        vjp: TransposedJacobian,
    ) -> Float[Tensor, "batch *shape"]:
        """(sigma^2 / alpha) g, the change of x0.

        Args:
            misfit: y - A x0, [B, ...].
            sigma_sq_over_alpha: sigma^2 / alpha, float64 [B]; times J^T it is the covariance of x0 given x_t.
            t: Times, [B].
            vjp: From v to J^T v, the Jacobian of x0 by x_t.
        """

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Ask the model, and change its answer.

        Raises:
            ValueError: If there is no measurement, or it or x_t does not fit the operator.
        """
        return self._asked(x_t, t, cond)[1]

    def _asked(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> tuple[Prediction, Prediction, Tensor]:
        """The model's answer, the changed one, and y - A x0."""
        check_per_sample("t", t, x_t.shape[0])
        self.operator.check(x_t)
        y, told = split_measurement(cond)
        self.operator.check_observed(y)
        with torch.set_grad_enabled(self.differentiates):
            # a leaf of its own, whatever x_t belongs to
            leaf = x_t.detach().requires_grad_(self.differentiates)
            attached = self.model(leaf, t, cond=told)
        answer = replace(attached, x0=attached.x0.detach(), eps=attached.eps.detach())
        alpha = self.sde.alpha(t)
        has_signal = alpha > 0
        unit = torch.where(has_signal, answer.sigma**2 / alpha, 0.0)

        def vjp(v: Tensor) -> Tensor:
            return torch.autograd.grad(attached.x0, leaf, v.to(answer.x0.dtype), retain_graph=True)[0]

        misfit = y.to(x_t.dtype) - self.operator.forward(answer.x0)
        change = torch.where(expand_like(has_signal, x_t) > 0, self.change(misfit, unit, t, vjp), 0.0)
        on_eps = torch.where(has_signal, alpha / answer.sigma, 0.0)
        changed = replace(answer, x0=answer.x0 + change, eps=answer.eps - expand_like(on_eps, x_t) * change)
        return answer, changed, misfit


def split_measurement(cond: Cond | None) -> tuple[Tensor, Cond | None]:
    """The measurement of a condition, and the condition without it.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(cond, Condition) or cond.measurement is None:
        raise ValueError("a model of the posterior needs a measurement, got none; pass Condition(measurement=y)")
    others = {name: value for name, value in cond.given.items() if name != "measurement"}
    return cond.measurement, Condition(**others) if others else None


POSTERIORS: Registry[ObservedScoreModel] = Registry("posterior method")
register_posterior, available_posteriors, make_posterior = POSTERIORS.register, POSTERIORS.names, POSTERIORS.make


@register_posterior("dps")
class DPSScoreModel(ObservedScoreModel):
    """Diffusion posterior sampling: g = scale J^T A^T (y - A x0) / noise_std^2 (Chung et al. 2022, Eq. 11 and 16).

    With scale 1 it takes p(y | x_t) for p(y | x0 = E[x0 | x_t]). That is far too narrow where x_t is noise, and steps
    diverge if noise_std is small. What was published divides by the misfit's norm in its place, with a scale that is
    chosen for each data set: ``DPSStepScoreModel``.

    Args:
        model: The model.
        operator: A.
        noise_std: Above 0.
        scale: What the gradient is multiplied by.
    """

    noiseless = False

    def __init__(self, model: ScoreModel, operator: LinearOperator, *, noise_std: float, scale: float = 1.0) -> None:
        super().__init__(model, operator, noise_std=noise_std)
        self.scale = scale

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """(sigma^2 / alpha) scale J^T A^T misfit / noise_std^2."""
        factor = self.scale / self.noise_std**2 * sigma_sq_over_alpha
        return _times(factor, vjp(self.operator.adjoint(misfit)))


class DPSStepScoreModel(ObservedScoreModel):
    """DPS as published: each ancestral step ends with x_s - scale grad_{x_t} |y - A x0| (Chung et al. 2022, Alg. 1).

    An ancestral step from t to s has x0 with the factor c = alpha_s (1 - exp(lambda_t - lambda_s)), 1 onto x0 itself,
    so that this is the change -scale / c grad |y - A x0| of x0, of each sample's own norm. In other samplers it is a
    change like any other.

    Args:
        model: The model.
        operator: A.
        times: The sampler's grid, ``sampler.times(model.sde)``.
        scale: zeta; 0.3 to 1 in the paper.
    """

    def __init__(
        self, model: ScoreModel, operator: LinearOperator, *, times: Float[Tensor, " points"], scale: float = 1.0
    ) -> None:
        super().__init__(model, operator, noise_std=0.0)
        self.times, self.scale = check_grid(times), scale

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """scale / c J^T A^T misfit / |misfit|."""
        norm = misfit.double().flatten(1).norm(dim=1)
        end = step_of(self.times, t) + 1
        # beyond the grid's last time x0 itself follows, with alpha = 1 and no noise
        ends = [(self.sde.alpha(self.times), 1.0), (self.sde.log_snr(self.times), math.inf)]
        alpha, log_snr = (torch.cat([on_grid, on_grid.new_tensor([last])]).to(t.device)[end] for on_grid, last in ends)
        factor = -alpha * torch.expm1(self.sde.log_snr(t) - log_snr)
        return _times(self.scale / (factor * _nonzero(norm)), vjp(self.operator.adjoint(misfit)))


@register_posterior("pigdm")
class PiGDMScoreModel(ObservedScoreModel):
    """Pseudo-inverse guidance: g = J^T A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x0) (Song et al. 2023, Eq. 7).

    r^2 = v sigma^2 / (alpha^2 v + sigma^2) is the variance of x0 given x_t for data of variance v. Their sampler adds
    the gradient to a DDIM step with a factor of its own; this is the score that Bayes' rule makes of it.

    Args:
        model: The model.
        operator: A.
        noise_std: At least 0.
        data_var: v, above 0.

    Raises:
        ValueError: If v is not above 0.
    """

    def __init__(self, model: ScoreModel, operator: LinearOperator, *, noise_std: float, data_var: float = 1.0) -> None:
        super().__init__(model, operator, noise_std=noise_std)
        if not 0 < data_var < math.inf:
            raise ValueError(f"data_var must be above 0, got {data_var}; that of the data, about 1 for images")
        self.data_var = data_var

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """(sigma^2 / alpha) J^T A^T (r^2 A A^T + noise_std^2 I)^-1 misfit."""
        solved = self.solve(misfit, t)
        return _times(sigma_sq_over_alpha, vjp(self.operator.adjoint(solved)))

    def twist(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Twist:
        """The model's answer, the changed one, and the likelihood whose gradient changes it; see ``TwistedModel``."""
        answer, changed, misfit = self._asked(x_t, t, cond)
        return Twist(answer, changed, self.log_likelihood(misfit, t))

    def log_likelihood_of_data(self, x0: Tensor, *, cond: Cond | None = None) -> Float[Tensor, " batch"]:
        """log N(y; A x0, noise_std^2 I), float64 [B].

        Raises:
            ValueError: If noise_std is 0, where x0 has a likelihood of 0 or infinity.
        """
        if self.noise_std == 0:
            raise ValueError("the likelihood of data needs noise_std above 0, got 0; tell the noise of the measurement")
        misfit = split_measurement(cond)[0].double() - self.operator.forward(x0.double())
        return torch.distributions.Normal(0.0, self.noise_std).log_prob(misfit).flatten(1).sum(1)

    def solve(self, misfit: Tensor, t: Float[Tensor, " batch"]) -> Tensor:
        """(r^2 A A^T + noise_std^2 I)^-1 misfit."""
        var = expand_like(self.x0_var(t), misfit.double())
        return self.operator.gram(lambda e: _inverse(var * e + self.noise_std**2), misfit)

    def x0_var(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """r^2, float64 [B]."""
        alpha, sigma = self.sde.alpha_sigma(t)
        return self.data_var * sigma.square() / (alpha.square() * self.data_var + sigma.square())

    def log_likelihood(self, misfit: Tensor, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """log N(y; A x0, r^2 A A^T + noise_std^2 I), float64 [B], of y - A x0."""
        solved = self.solve(misfit.double(), t)
        var = self.x0_var(t)
        shape = (-1, *[1] * (len(self.operator.observed_shape)))
        log_det = self.operator.trace(lambda e: (var.view(shape) * e + self.noise_std**2).log())
        size = math.prod(self.operator.observed_shape)
        quadratic = (misfit.double() * solved).flatten(1).sum(1)
        return -0.5 * (quadratic + log_det + size * math.log(2 * math.pi))


@register_posterior("tmpd")
class TMPDScoreModel(ObservedScoreModel):
    """Tweedie moment projection: g = J^T A^T (D + noise_std^2 I)^-1 (y - A x0) (Boys et al. 2023, Eq. 9 and 10).

    C = (sigma^2 / alpha) J^T is the covariance of x0 given x_t, by Tweedie's formula, and D = diag(A C A^T 1) has the
    sums of the rows of A C A^T: one more pass backwards. Sums below 0, which no covariance of an exact model with
    positive correlations has, are taken for 0.

    Args:
        model: The model.
        operator: A.
        noise_std: Above 0.
    """

    noiseless = False

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """(sigma^2 / alpha) J^T A^T (D + noise_std^2 I)^-1 misfit."""
        rows = _observed_cov(self.operator, sigma_sq_over_alpha, vjp)(torch.ones_like(misfit)).clamp(min=0)
        return _times(sigma_sq_over_alpha, vjp(self.operator.adjoint(misfit / (rows + self.noise_std**2))))


@register_posterior("mmps")
class MMPSScoreModel(ObservedScoreModel):
    """Moment matching: g = J^T A^T (A C A^T + noise_std^2 I)^-1 (y - A x0) (Rozet et al. 2024, Eq. 13 and 14).

    C = (sigma^2 / alpha) J^T is the covariance of x0 given x_t, by Tweedie's formula. With Gaussian data this is the
    exact score of p(x0 | y). The system is solved by GMRES, since a network's Jacobian is not symmetric: each iteration
    is a pass backwards, and as many as y has numbers solve it exactly.

    Args:
        model: The model.
        operator: A.
        noise_std: At least 0.
        iterations: Of GMRES, at least 1.
    """

    def __init__(self, model: ScoreModel, operator: LinearOperator, *, noise_std: float, iterations: int = 5) -> None:
        super().__init__(model, operator, noise_std=noise_std)
        self.iterations = whole_number("iterations", iterations, fix="5 is usual")

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """(sigma^2 / alpha) J^T A^T (A C A^T + noise_std^2 I)^-1 misfit."""
        cov = _observed_cov(self.operator, sigma_sq_over_alpha, vjp)
        solved = gmres(lambda v: cov(v) + self.noise_std**2 * v, misfit, iterations=self.iterations)
        return _times(sigma_sq_over_alpha, vjp(self.operator.adjoint(solved)))


@register_posterior("ddnm")
class DDNMScoreModel(PiGDMScoreModel):
    """The null-space method: x0' = x0 + A^+ (y - A x0), so that A x0' = y (Wang et al. 2022, Eq. 13).

    With noise, x0' = x0 + r^2 A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x0), the mean of x0 given y for data of
    covariance r^2 I around the model's answer; r^2 as in ``PiGDMScoreModel``. Their noisy form scales by what the
    step's own noise leaves, which a model does not know. No gradient is taken.

    Args:
        model: The model.
        operator: A.
        noise_std: At least 0.
        data_var: Variance of the data, above 0; without effect where noise_std is 0.
    """

    differentiates = False

    def change(self, misfit: Tensor, sigma_sq_over_alpha: Tensor, t: Tensor, vjp: TransposedJacobian) -> Tensor:
        """r^2 A^T (r^2 A A^T + noise_std^2 I)^-1 misfit."""
        back = self.operator.adjoint(self.solve(misfit, t))
        return _times(self.x0_var(t), back)


def gmres(
    apply: Callable[[Tensor], Tensor], right: Float[Tensor, "batch *observed"], *, iterations: int
) -> Float[Tensor, "batch *observed"]:
    """Solve M x = b of each sample by GMRES from x = 0 (Saad & Schultz 1986, Algorithm 3).

    No sample's answer depends on the others: all take as many iterations, and one that is solved stays so.

    Args:
        apply: M, linear in each sample, [B, ...] to [B, ...].
        right: b.
        iterations: At most; the dimension of b suffices.

    Returns:
        The x of the Krylov space with the least residual.
    """
    shape, flat = right.shape, right.double().flatten(1)
    iterations = min(iterations, flat.shape[1])
    norm = flat.norm(dim=1)
    basis = [flat / _nonzero(norm)[:, None]]
    # M V = V' H, with orthonormal columns V, V'
    hessenberg = flat.new_zeros(len(flat), iterations + 1, iterations)
    for k in range(iterations):
        image = apply(basis[k].to(right.dtype).view(shape)).double().flatten(1)
        size = image.norm(dim=1)
        for _ in range(2):  # a second time takes what rounding left
            for j, v in enumerate(basis):
                share = (v * image).sum(1)
                hessenberg[:, j, k] += share
                image = image - share[:, None] * v
        left = image.norm(dim=1)
        left = torch.where(left <= _ROUNDING * size, 0.0, left)
        hessenberg[:, k + 1, k] = left
        basis.append(torch.where(left > 0, 1 / _nonzero(left), 0.0)[:, None] * image)
    target = flat.new_zeros(len(flat), iterations + 1, 1)
    target[:, 0, 0] = norm
    weights = torch.linalg.pinv(hessenberg) @ target
    solution = torch.stack(basis[:-1], 2) @ weights
    return solution.squeeze(2).to(right.dtype).view(shape)


_ROUNDING = 1e-6  # of float32 operators


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, 1.0, values)


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where they are 0."""
    return torch.where(values > 0, 1 / _nonzero(values), 0.0)


def _observed_cov(operator: LinearOperator, unit: Tensor, vjp: TransposedJacobian) -> Callable[[Tensor], Tensor]:
    """v -> A C A^T v, with C = (sigma^2 / alpha) J^T."""
    return lambda v: operator.forward(_times(unit, vjp(operator.adjoint(v)))).to(v.dtype)


def _times(per_sample: Float[Tensor, " batch"], x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    return expand_like(per_sample, x) * x
