"""A cascade of exact stages has the law of the data at every noise level: means and covariances by impulses."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from data import ImageKind, make_conditions
from experiment.conditions import Conditions
from models import (
    CFGPlusPlusWeight,
    GuidedScoreModel,
    LabelledMixtureScoreModel,
    LinearGaussianScoreModel,
)
from models.condition import label_of
from proofs.cascade import COV, FORGOTTEN, LARGE, MEAN, NOISE_T, SDE, SMALL, A, affine, exact_cascade, law
from samplers import make_sampler
from sde_lib import VE, NoiseStreams
from tasks import Cascade, Stage
from tasks import cascade as module


def exact(s: float, *, num_steps: int = 50, sampler: str = "ddim", **options: Any) -> Cascade:
    return exact_cascade(s, make_sampler(sampler, num_steps=num_steps), **options)


def errors(cascade: Cascade) -> tuple[Tensor, Tensor]:
    mean, cov = law(cascade)
    return mean - MEAN, cov - COV


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("s", NOISE_T)
def test_a_cascade_of_exact_stages_has_the_law_of_the_data(s: float, truncated: bool):
    mean, coarse = errors(exact(s, truncated=truncated, num_steps=25))
    assert float(mean.norm()) < FORGOTTEN
    _, fine = errors(exact(s, truncated=truncated, num_steps=50))
    # what is wrong is the steps' alone: it is halved with them, and no larger than what the halving changed
    assert float(fine.norm()) < 0.62 * float(coarse.norm())
    assert float(fine.norm()) < 1.3 * float((fine - coarse).norm())


@pytest.mark.parametrize("truncated", [False, True])
def test_so_it_has_with_a_sampler_that_draws_noise(truncated: bool):
    found = [errors(exact(0.2, truncated=truncated, num_steps=n, sampler="ancestral"))[1] for n in (20, 40)]
    assert float(found[1].norm()) < 0.62 * float(found[0].norm())


def given_small(s: float) -> tuple[Tensor, Tensor]:
    """Gain of y_s on E[y | y_s], times alpha, and Var[y | y_s]."""
    alpha, sigma = SDE.alpha_sigma(torch.tensor([s], dtype=torch.float64))
    cov = A @ COV @ A.mT
    share = alpha**2 * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2, dtype=torch.float64))
    return share, cov - share @ cov


@pytest.mark.parametrize("s", NOISE_T)
def test_the_final_image_agrees_with_the_small_one_as_the_noise_allows(s: float):
    """Given y_s, A x and y are independent draws of p(y | y_s), so that E|A x - y|^2 = 2 tr Var[y | y_s]."""
    found = []
    for num_steps in (30, 60):
        (small, large), (of_small, of_large) = affine(exact(s, num_steps=num_steps))
        off, gain = A @ large - small, A @ of_large - of_small
        found.append(float(off.square().sum() + gain.square().sum()))
    expected = 2 * float(given_small(s)[1].trace())
    assert abs(found[1] - expected) <= 1.3 * abs(found[1] - found[0]) + 1e-10
    assert (expected == pytest.approx(0, abs=1e-12)) == (s == 0)


def test_the_noise_hides_what_the_first_stage_does_wrong():
    """Wrong by delta, the first stage moves A x by alpha^2 S (alpha^2 S + sigma^2)^-1 delta: less at more noise."""
    delta, moved = torch.tensor([0.3, -0.2], dtype=torch.float64), []
    for s in NOISE_T:
        (_, wrong), _ = affine(exact(s, num_steps=10, delta=delta))
        (_, right), _ = affine(exact(s, num_steps=10))
        torch.testing.assert_close(A @ (wrong - right), given_small(s)[0] @ delta, rtol=1e-5, atol=1e-7)
        moved.append(float((A @ (wrong - right)).norm()))
    assert moved[0] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert all(later < 0.9 * before for before, later in pairwise(moved))


@pytest.mark.parametrize("truncated", [False, True])
def test_image_k_is_the_same_in_any_batch(truncated: bool):
    cascade = exact(0.2, truncated=truncated, num_steps=5, sampler="ancestral")
    whole, part = cascade.sample(range(6), seed=3), cascade.sample(range(4, 6), seed=3)
    for all_of_them, some in zip(whole.x0, part.x0, strict=True):
        torch.testing.assert_close(all_of_them[4:], some, rtol=1e-6, atol=1e-6)
    other = cascade.sample(range(4, 6), seed=4)
    assert not torch.allclose(other.x0[0], part.x0[0]) and not torch.allclose(other.x0[1], part.x0[1])


def test_what_is_stopped_early_is_not_called_below_and_is_the_same_chain_above():
    steps, s = 10, 0.5
    whole, short = (exact(s, truncated=cut, num_steps=steps).sample(range(3)) for cut in (False, True))
    # 5 steps down to 0.5, and one call that predicts x0 there
    assert whole.nfe == 2 * steps and short.nfe == 6 + steps
    model = exact(s).stages[0].model
    sampler = make_sampler("ddim", num_steps=steps, record_trajectory=True)
    noise = NoiseStreams(module.derive_seed(0, 0), range(3))
    x_T = sampler.prior_sample(SDE, SMALL.image_shape, noise)
    states = sampler.sample(model, x_T, noise=noise).trajectory
    assert states is not None
    t = torch.full((3,), s, dtype=torch.float64)
    torch.testing.assert_close(short.x0[0], model(states[5], t).x0)


def test_the_next_stage_is_told_grey_levels_and_the_class():
    """Each stage is told what its training tells it: the nearest levels of the small image, and the same class."""
    kind, told = ImageKind((1, 1, 2), 5, 3), []

    class Told(LinearGaussianScoreModel):
        def forward(self, x_t, t, *, cond=None):
            told.append(cond)
            return super().forward(x_t, t, cond=None)

    class First(LabelledMixtureScoreModel):
        def forward(self, x_t, t, *, cond=None):
            answer = super().forward(x_t.flatten(1), t, cond=label_of(cond))
            return replace(answer, x0=answer.x0.reshape(x_t.shape), eps=answer.eps.reshape(x_t.shape))

    means = torch.tensor([[-0.9, 0.4], [0.1, 0.7], [0.6, -0.3]])
    first = First(SDE, means=means, covs=torch.zeros(3, 2, 2), labels=range(3))
    second = Told(SDE, weight=torch.zeros(8, 1), bias=MEAN, cov=COV)
    larger = Conditions(replace(LARGE, num_classes=3), labels=True, makers=make_conditions(["lowres"]))
    sampler = make_sampler("ddim", num_steps=5)
    stages = [Stage(first, sampler, Conditions(kind, labels=True)), Stage(second, sampler, larger)]
    Cascade(stages, noise_t=[0.0]).sample(range(4), labels=torch.tensor([2, 0, 1, 2]))
    assert told[0].label.tolist() == [2, 0, 1, 2] and told[0].image_log_snr is None
    # the means of the classes, at levels 0.5 apart, and each pixel repeated
    assert told[0].image[:, 0, 0, ::2].tolist() == [[0.5, -0.5], [-1.0, 0.5], [0.0, 0.5], [0.5, -0.5]]
    assert torch.equal(told[0].image[:, :, 0, 0], told[0].image[:, :, 1, 1])
    # all classes in turn
    told.clear()
    Cascade(stages, noise_t=[0.0]).sample(range(1, 5))
    assert told[0].label.tolist() == [1, 2, 0, 1]


TIMES = torch.linspace(1, 0, 5, dtype=torch.float64)


def test_labels_of_a_cascade_without_classes_are_refused():
    with pytest.raises(ValueError, match="the cascade is told no classes, got labels; leave them out"):
        exact(0.2).sample(range(2), labels=torch.tensor([0, 1]))


def changed(number: int, **changes: object) -> list[Stage]:
    stages = exact(0.2).stages
    return [replace(stage, **changes) if k == number else stage for k, stage in enumerate(stages)]


def paired() -> Conditions:
    """Conditions of data that have an image beside each, of the kind that the first stage draws."""
    beside = replace(LARGE, paired_channels=1, paired_levels=SMALL.num_levels)
    return Conditions(beside, makers=make_conditions(["paired"]))


@pytest.mark.parametrize(
    ("stages", "noise_t", "message"),
    [
        (changed(0)[:1], [], "a cascade has 2 stages or more, got 1"),
        (changed(0), [0.1, 0.2], "of 2 stages needs 1 noise levels, got 2"),
        (changed(1, most_noise_t=0.15), [0.2], "noise_t of stage 1 must be from 0 to 0.15, as in its training"),
        (changed(0), [-0.1], "must be from 0 to 1, as in its training, got -0.1"),
        (changed(0), [math.nan], "as in its training, got nan"),
        (changed(1, conditions=Conditions(LARGE)), [0.1], "stage 1 must be told the image of stage 0 alone"),
        (changed(1, conditions=paired()), [0.1], "told the image of stage 0 alone, got [Paired()]; train it"),
        (changed(0)[::-1], [0.1], "the first stage, 0, is told an image or values"),
        (
            changed(0, conditions=Conditions(replace(SMALL, num_levels=9))), [0.1],
            "stage 1 is told images of 1x1x2 with 5 levels, but stage 0 draws 1x1x2 with 9 levels",
        ),
        (
            changed(1, conditions=Conditions(LARGE, labels=True, makers=make_conditions(["lowres"]))), [0.1],
            "stage 1 is told a class, which the first stage, 0, is not told alike",
        ),
        (changed(0, model=LinearGaussianScoreModel(VE(), weight=torch.zeros(2, 1), bias=A @ MEAN, cov=A @ COV @ A.mT)),
         [0.1], "the stage before in a truncated cascade must be of the model's SDE"),
        (changed(0, sampler=make_sampler("probability_flow")), [0.1], "which ProbabilityFlowSampler cannot; take ddim"),
        (changed(0), [1.0], "a truncated cascade must stop below t = 1, got 1"),
        (
            changed(0, model=GuidedScoreModel(exact(0.2).stages[0].model, weight=CFGPlusPlusWeight(0.6, TIMES))), [0.1],
            "the weights of CFG++ are of the whole grid, which a truncated cascade stops",
        ),
    ],
)  # fmt: skip
def test_stages_that_make_no_cascade_are_refused(stages: list[Stage], noise_t: list[float], message: str):
    with pytest.raises(ValueError) as caught:
        Cascade(stages, noise_t=noise_t, truncated=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)
