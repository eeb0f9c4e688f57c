"""The condition of a batch: its fields, rows and null, and labels as its plain form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likelihood import make_likelihood
from models import Condition, EpsParameterization, NetworkScoreModel
from samplers import make_sampler
from sde_lib import VP, NoiseStreams


def _full(size: int) -> Condition:
    numbers = torch.arange(size, dtype=torch.float32)
    return Condition(
        label=torch.arange(size),
        image=numbers[:, None, None, None].expand(size, 3, 2, 2),
        image_log_snr=numbers,
        values=numbers[:, None].expand(size, 2),
        tokens=numbers[:, None, None].expand(size, 4, 5),
        mask=torch.ones(size, 4, dtype=torch.bool),
        pooled=numbers[:, None].expand(size, 6),
    )


def test_rows_are_taken_of_every_field_and_put_together_again():
    whole = _full(5)
    first, last = whole[:2], whole[torch.tensor([2, 3, 4])]
    assert (len(whole), len(first), len(last)) == (5, 2, 3)
    assert all(bool((value.float().flatten(1 if value.ndim > 1 else 0)[0] == 2).all()) for name, value in
               last.given.items() if name != "mask")  # fmt: skip
    joined = Condition.cat([first, last])
    assert joined.given.keys() == whole.given.keys()
    assert all(torch.equal(value, whole.given[name]) for name, value in joined.given.items())
    with pytest.raises(ValueError, match="must have the same fields"):
        Condition.cat([first, Condition(label=torch.tensor([1]))])


def test_the_null_condition_says_nothing_and_keeps_shapes():
    whole = _full(3)
    null = whole.without()
    assert null.given.keys() == whole.given.keys()
    assert all(value.shape == whole.given[name].shape for name, value in null.given.items())
    assert null.label is not None and null.label.tolist() == [-1, -1, -1]
    assert null.mask is not None and not bool(null.mask.any())
    for value in (null.image, null.values, null.pooled):
        assert value is not None and bool(value.isnan().all())
    unmasked = Condition(tokens=torch.ones(2, 3, 4)).without()
    assert unmasked.mask is not None and unmasked.mask.shape == (2, 3) and not bool(unmasked.mask.any())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a condition needs a field, got none"),
        ({"label": torch.tensor([1.0])}, "condition label must be int64, got torch.float32"),
        ({"label": torch.tensor([[1]])}, r"condition label must have 1 dimensions, got \[1, 1\]"),
        ({"image": torch.zeros(2, 3)}, "condition image must have 4 dimensions"),
        ({"values": torch.zeros(2, 3, dtype=torch.int64)}, "condition values must be float, got torch.int64"),
        ({"mask": torch.ones(2, 3)}, "condition mask must be bool"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask must be \[B, L\] as tokens are, got \[2, 3\] and None"),
        ({"label": torch.tensor([1]), "values": torch.zeros(2, 1)}, "must be of one batch"),
    ],
)
def test_refusals(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Condition(**values)
    assert "\n" not in str(caught.value)


class _TakesLabels(nn.Module):
    """eps = label / 10 everywhere."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        assert isinstance(cond, Tensor)
        return 0 * x + cond.to(x.dtype)[:, None] / 10


def test_labels_and_a_condition_of_labels_are_the_same():
    model = NetworkScoreModel(_TakesLabels(), VP(), EpsParameterization())
    x, t, label = torch.randn(3, 2), torch.full((3,), 0.5), torch.tensor([1, 5, 7])
    plain, whole = model(x, t, cond=label), model(x, t, cond=Condition(label=label))
    assert torch.equal(plain.eps, whole.eps) and math.isclose(float(plain.eps[1, 0]), 0.5, rel_tol=1e-6)
    with pytest.raises(ValueError, match="this network is not told values; leave these out of the condition"):
        model(x, t, cond=Condition(label=label, values=torch.zeros(3, 1)))


@pytest.mark.parametrize("name", ["ddim", "predictor_corrector", "dpm_solver_pp", "probability_flow"])
def test_samplers_take_a_condition_as_they_take_labels(name: str):
    model, label = NetworkScoreModel(_TakesLabels(), VP(), EpsParameterization()), torch.tensor([1, 5, 7])
    sampler = make_sampler(name) if name == "probability_flow" else make_sampler(name, num_steps=4)
    plain, whole, other = (
        sampler.sample(model, torch.ones(3, 2), cond=cond, noise=NoiseStreams(0, range(3))).x0
        for cond in (label, Condition(label=label), Condition(label=label.flip(0)))
    )
    assert torch.equal(plain, whole) and not torch.equal(plain[0], other[0]) and torch.equal(plain[1], other[1])


@pytest.mark.parametrize("name", ["vlb", "vlb_continuous", "ode"])
def test_likelihoods_take_a_condition_as_they_take_labels(name: str):
    model, label = NetworkScoreModel(_TakesLabels(), VP(), EpsParameterization()), torch.tensor([1, 5, 7])
    few = {"num_steps": 10} if name == "vlb" else {}
    estimator, x0 = make_likelihood(name, num_levels=3, **few), torch.zeros(3, 2)
    plain, whole = (
        estimator(model, x0, cond=cond, noise=NoiseStreams(0, range(3))).total
        for cond in (label, Condition(label=label))
    )
    assert torch.equal(plain, whole)
    with pytest.raises(ValueError, match="cond must have 3 rows, one a sample of x0, got a condition of 2"):
        estimator(model, x0, cond=Condition(label=label[:2]))
