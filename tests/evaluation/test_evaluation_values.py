"""Measuring a split given its values, by an exact model."""

import torch
from torch.distributions import MultivariateNormal

from data import RealSpace, VectorDataset, make_conditions
from evaluation.measurement import EvalSplit
from experiment.conditions import Conditions
from likelihood import FlowLikelihood
from models import LinearGaussianScoreModel
from sde_lib import make_sde


def test_the_density_given_values_is_the_closed_form_whatever_the_batch():
    """v | c ~ N(W c + b, C) in the units of the file; the model is told c as the file has it."""
    generator = torch.Generator().manual_seed(0)
    W, b = torch.tensor([[30.0, -10.0], [0.5, 2.0]]).double(), torch.tensor([100.0, -3.0]).double()
    factor = torch.tensor([[5.0, 0.0], [0.3, 0.4]]).double()
    c, normal = (torch.randn(5, 2, generator=generator).double() for _ in range(2))
    v = c @ W.mT + b + normal @ factor.mT
    space = RealSpace((90.0, -2.0), (30.0, 2.0))
    data = VectorDataset(v, torch.zeros(5, dtype=torch.int64), space, 1, "toy", "test", values=c.float())
    mean, std = torch.tensor(space.mean).double(), torch.tensor(space.std).double()
    model = LinearGaussianScoreModel(
        make_sde("vp"), weight=W / std[:, None], bias=(b - mean) / std, cov=factor @ factor.mT / torch.outer(std, std)
    )
    flow = FlowLikelihood(dequantization="none", divergence="exact", rtol=1e-4, atol=1e-5)
    told = Conditions(data.kind, makers=make_conditions(("values",)))
    expected = -MultivariateNormal(c @ W.mT + b, factor @ factor.mT).log_prob(v)
    split = EvalSplit(data, batch_size=2, conditions=told)
    parts = [split.measure(k, flow, model) for k in range(len(split))]
    found = torch.cat([torch.from_numpy(one["prior"] + one["diffusion"] + one["reconstruction"]) for one in parts])
    # of x_1 the prior knows no mean, alpha x0; another sample's values cost tens of nats
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
