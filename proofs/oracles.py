"""Closed forms of the proofs: a Gaussian, a mixture in the plane, and networks that answer as either."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models import Cond, NetworkScoreModel, Prediction, ScoreModel, make_parameterization
from sde_lib import SDE, VE, VP, CosineVP, NoiseStreams, RectifiedFlow, SubVP, Tabulated, expand_like

SDES: dict[str, SDE] = {
    "VP": VP(),
    "cosine VP": CosineVP(),
    "sub-VP": SubVP(),
    "VE": VE(sigma_max=20.0),
    "rectified flow": RectifiedFlow(),
    "DDPM table": Tabulated.ddpm(),
    # 200 levels, the last one fine beside the data
    "NCSN table": Tabulated.ncsn(num_steps=200, sigma_min=0.01, sigma_max=20.0),
}
PARAMETERIZATIONS = ("eps", "x0", "v", "score", "edm")
# where a learned variance lies between the small one and the large one, in the logarithm
FRACTION = 0.5


def parameterizations_of(sde: SDE) -> tuple[str, ...]:
    """Those that a cell is proven with: of a rectified flow its own too."""
    return (*PARAMETERIZATIONS, "velocity") if isinstance(sde, RectifiedFlow) else PARAMETERIZATIONS


@dataclass(frozen=True)
class Component:
    """One Gaussian of a mixture in the plane.

    Attributes:
        weight: Its share.
        mean: (x, y).
        cov: (xx, xy, yy).
    """

    weight: float
    mean: tuple[float, float]
    cov: tuple[float, float, float]


# wide along one diagonal, narrow along the other
GAUSSIAN = (Component(1.0, (0.7, -0.4), (0.30, 0.12, 0.20)),)
# unequal, correlated, well separated
MIXTURE = (Component(0.35, (-0.8, 0.3), (0.05, 0.03, 0.08)), Component(0.65, (0.6, -0.4), (0.10, -0.02, 0.04)))


class PlaneOracle(ScoreModel):
    """A Gaussian, or a mixture of two, in the plane: exact x0 and eps. A sample is [2, M], M points.

    A component's eps = sigma V^-1 (x_t - alpha mean) and x0 = mean + alpha C V^-1 (x_t - alpha mean), with
    V = alpha^2 C + sigma^2, are affine in x_t. Of two components, the answers are weighted by the odds that x_t is from
    each, whose logarithm is quadratic in x_t.

    Args:
        sde: The SDE.
        components: One or two.
    """

    def __init__(self, sde: SDE, components: tuple[Component, ...] = MIXTURE) -> None:
        super().__init__(sde)
        self.components = components

    def moments(self, x_t: Float[Tensor, "batch 2 points"], t: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] and E[eps | x_t], in float64."""
        alpha, sigma = self.sde.alpha(t)[:, None, None], self.sde.sigma(t)[:, None, None]
        maps, offsets = [], []
        quadratic = linear = constant = x_t.new_zeros(())
        for sign, component in zip((-1, 1), self.components, strict=False):
            xx, xy, yy = component.cov
            cov = x_t.new_tensor([[xx, xy], [xy, yy]])
            center = alpha * x_t.new_tensor(component.mean)[:, None]
            vxx, vxy, vyy = alpha**2 * xx + sigma**2, alpha**2 * xy, alpha**2 * yy + sigma**2
            det = vxx * vyy - vxy**2
            inverse = torch.cat([torch.cat([vyy, -vxy], 2), torch.cat([-vxy, vxx], 2)], 1) / det
            # not x0 = (x_t - sigma eps) / alpha, which loses digits where alpha is small
            both = torch.cat([sigma * inverse, alpha * cov @ inverse], 1)
            maps.append(both)
            mean = x_t.new_tensor(component.mean)[:, None].expand(len(t), 2, 1)
            offsets.append(torch.cat([torch.zeros_like(mean), mean], 1) - both @ center)
            quadratic = quadratic - sign * 0.5 * inverse
            linear = linear + sign * inverse @ center
            log_weight = math.log(component.weight)
            constant = constant + sign * (log_weight - 0.5 * (det.log() + center.mT @ inverse @ center))
        answers = [torch.baddbmm(b, a, x_t) for a, b in zip(maps, offsets, strict=True)]
        answer = answers[0]
        if len(answers) == 2:
            log_odds = ((quadratic @ x_t + linear) * x_t).sum(1, keepdim=True).add_(constant)
            answer = torch.lerp(answers[0], answers[1], log_odds.sigmoid_())
        return answer[:, 2:], answer[:, :2]

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """The exact answer, with a variance fraction as a network that learns its variance gives it."""
        x0, eps = self.moments(x_t, t)
        fraction = torch.full_like(x_t, FRACTION)
        return Prediction(x0=x0, eps=eps, sigma=self.sde.sigma(t), variance_fraction=fraction)

    def draw_noisy(self, t: Tensor, num_points: int, noise: NoiseStreams) -> Tensor:
        """x_t at a time [1], float64 [B, 2, num_points]."""
        x0 = self.draw(num_points, noise)
        return self.sde.perturb(x0, t.expand(len(x0)), noise.normal_like(x0))

    def draw(self, num_points: int, noise: NoiseStreams) -> Tensor:
        """x0, float64 [B, 2, num_points]."""
        last = (noise.uniform((num_points,)) >= self.components[0].weight).long()
        z = noise.normal((2, num_points)).double()
        index = last.clamp(max=len(self.components) - 1)
        mean = torch.tensor([c.mean for c in self.components], dtype=torch.float64)[index]
        cov = torch.tensor([c.cov for c in self.components], dtype=torch.float64)[index]
        xx, xy, yy = cov.unbind(-1)
        x = mean[..., 0] + xx.sqrt() * z[:, 0]
        y = mean[..., 1] + xy / xx.sqrt() * z[:, 0] + (yy - xy**2 / xx).sqrt() * z[:, 1]
        return torch.stack([x, y], 1)


def points_in_plane(x: Tensor) -> Float[Tensor, "points 2"]:
    """The points of a batch of samples [B, 2, M], one a row."""
    return x.transpose(1, 2).reshape(-1, 2)


def central_moments(components: tuple[Component, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [2], covariance [2, 2] and third central moment of each coordinate [2] of the data."""
    weights = torch.tensor([c.weight for c in components], dtype=torch.float64)
    means = torch.tensor([c.mean for c in components], dtype=torch.float64)
    covs = torch.tensor([[[c.cov[0], c.cov[1]], [c.cov[1], c.cov[2]]] for c in components], dtype=torch.float64)
    mean = weights @ means
    shift = means - mean
    cov = torch.einsum("k,kij->ij", weights, covs + shift[:, :, None] * shift[:, None])
    third = weights @ (shift**3 + 3 * shift * covs.diagonal(dim1=1, dim2=2))
    return mean, cov, third


def to_unit_square(
    points: Float[Tensor, "points 2"], components: tuple[Component, ...] = MIXTURE
) -> Float[Tensor, "points 2"]:
    """(F(x), F(y | x)): uniform on the unit square if and only if the points are from the mixture.

    (Rosenblatt 1952, "Remarks on a multivariate transformation".)
    """
    x, y = points.double().unbind(-1)
    joint, below = [], []
    marginal = torch.zeros_like(x)
    for component in components:
        (xx, xy, yy), mean = component.cov, component.mean
        z = (x - mean[0]) / math.sqrt(xx)
        marginal += component.weight * torch.special.ndtr(z)
        joint.append(math.log(component.weight / math.sqrt(xx)) - 0.5 * z.square())
        below.append(torch.special.ndtr((y - mean[1] - xy / xx * (x - mean[0])) / math.sqrt(yy - xy**2 / xx)))
    share = torch.stack(joint).softmax(0)
    return torch.stack([marginal, (share * torch.stack(below)).sum(0)], -1)


class ExactBackbone(nn.Module):
    """The network whose raw output makes a parameterization's prediction that of an oracle.

    It sees what a network sees, c_in x_t and c_noise, and finds t and x_t from these two. The second half of its
    channels says that the learned variance is at ``FRACTION``.

    Args:
        oracle: What it knows.
        name: One of ``parameterizations_of(sde)``.
        data_std: EDM's.
    """

    def __init__(self, oracle: PlaneOracle, name: str, *, data_std: float) -> None:
        super().__init__()
        # not a submodule: network calls are counted at the ScoreModel that is asked
        self._oracle = [oracle]
        self.name, self.data_std = name, data_std

    def _time(self, c_noise: Tensor) -> Tensor:
        sde = self._oracle[0].sde
        if self.name == "edm":
            return sde.time_from_log_snr(-8 * c_noise)
        return c_noise / 999 if sde.table_size is None else (c_noise + 1) / sde.table_size

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        """[B, n, ...] to [B, 2 n, ...]."""
        oracle, t = self._oracle[0], self._time(c_noise)
        alpha, sigma = (expand_like(v, scaled) for v in (oracle.sde.alpha(t), oracle.sde.sigma(t)))
        power = (sigma**2 + self.data_std**2 * alpha**2).sqrt()
        x0, eps = oracle.moments(scaled * power if self.name == "edm" else scaled, t)
        alpha_rate, sigma_rate = (expand_like(v, scaled) for v in oracle.sde.rates(t))
        raw = {
            "eps": lambda: eps,
            "x0": lambda: x0,
            "v": lambda: alpha * eps - sigma * x0,
            "velocity": lambda: alpha_rate * x0 + sigma_rate * eps,
            "score": lambda: -eps,
            # (x0 - c_skip x) / c_out with x = x0 + sigma eps / alpha put in, so that nothing cancels
            "edm": lambda: (sigma / self.data_std * x0 - self.data_std * alpha * eps) / power,
        }[self.name]()
        return torch.cat([raw, torch.full_like(raw, 2 * FRACTION - 1)], 1)


def network_model(oracle: PlaneOracle, name: str, *, data_std: float = 0.6) -> NetworkScoreModel:
    """A ``NetworkScoreModel`` of a parameterization that predicts what an oracle does.

    Args:
        oracle: The oracle.
        name: One of ``parameterizations_of(sde)``.
        data_std: EDM's standard deviation of the data.
    """
    parameterization = make_parameterization(name, data_std=data_std)
    backbone = ExactBackbone(oracle, name, data_std=data_std)
    return NetworkScoreModel(backbone, oracle.sde, parameterization, learned_variance=True)
