import json
import math

import numpy as np
import pytest
import torch
from in_one_process import draw, measure
from torch import Tensor

from data import ImageDataset, LevelSpace
from evaluation.measurement import Measurement, values_of
from evaluation.table import without_nan
from likelihood import LikelihoodTerms, VariationalBound
from models import DiscreteScoreModel, GaussianMixtureScoreModel
from samplers import AncestralSampler, DDIMSampler
from sde_lib import VP, NoiseStreams, Tabulated


def _dataset(levels: Tensor, num_levels: int) -> ImageDataset:
    return ImageDataset(
        levels.to(torch.uint8), torch.zeros(len(levels), dtype=torch.int64), num_levels, 1, "toy", "test"
    )


@pytest.fixture(scope="module")
def oracle() -> tuple[DiscreteScoreModel, ImageDataset]:
    """The exact denoiser of a 2-pixel picture, and draws of it as a data set."""
    patterns = torch.tensor([[0, 4], [1, 1], [3, 2], [4, 4]])
    sde = Tabulated.ddpm(num_steps=100, beta_start=1e-3, beta_end=0.1)
    points = LevelSpace(5).encode(patterns.to(torch.uint8)[:, None, None])
    model = DiscreteScoreModel(sde, points=points, probs=[0.4, 0.3, 0.2, 0.1])
    choice = torch.multinomial(model.probs, 700, replacement=True, generator=torch.Generator().manual_seed(0))
    return model, _dataset(patterns[choice][:, None, None], 5)


def test_mean_and_error_are_those_of_the_images_one_by_one(oracle: tuple[DiscreteScoreModel, ImageDataset]):
    model, dataset = oracle
    dataset = dataset.subset(250)
    bound = VariationalBound(num_levels=5, num_steps=200)
    means = measure(bound, model, dataset, batch_size=64, seed=3)
    x0 = LevelSpace(5).encode(dataset.images)
    alone = bound(model, x0, noise=NoiseStreams(3, range(250))).bits_per_dim.numpy()
    assert means.total.count == 250
    assert means.total.mean == pytest.approx(alone.mean(), rel=1e-6)
    assert means.total.stderr == pytest.approx(alone.std(ddof=1) / math.sqrt(250), rel=1e-6)
    # truth: the bound lies above the entropy, 1.846 bits in 2 pixels
    entropy = model.entropy() / math.log(2) / 2
    assert means.total.mean > entropy - 4 * means.total.stderr


@pytest.mark.parametrize("batch_size", [1, 33, 700, 1000])
def test_measure_takes_the_last_short_batch(oracle: tuple[DiscreteScoreModel, ImageDataset], batch_size: int):
    model, dataset = oracle
    bound = VariationalBound(num_levels=5, steps_per_image=3)
    few = dataset.subset(100)
    whole = measure(bound, model, few, batch_size=100, seed=1)
    parts = measure(bound, model, few, batch_size=batch_size, seed=1)
    assert parts.total.count == 100
    assert parts.total.mean == pytest.approx(whole.total.mean, rel=1e-6)
    assert parts.total.stderr == pytest.approx(whole.total.stderr, rel=1e-6)
    assert whole.nfe == 4


def test_parts_and_terms_add_up(oracle: tuple[DiscreteScoreModel, ImageDataset]):
    model, dataset = oracle
    report = measure(VariationalBound(num_levels=5), model, dataset, batch_size=100).report()
    parts = report["prior"] + report["diffusion"] + report["reconstruction"]
    assert parts == pytest.approx(report["bits_per_dim"], rel=1e-12)
    assert set(report) == {
        "bits_per_dim", "stderr", "prior", "diffusion", "reconstruction",
        "prior_stderr", "diffusion_stderr", "reconstruction_stderr", "nfe",
    }  # fmt: skip


def test_sampled_terms_are_filed_under_their_step():
    means = Measurement(
        [
            values_of(
                LikelihoodTerms(
                    prior=torch.zeros(2).double(),
                    diffusion=torch.zeros(2).double(),
                    reconstruction=torch.zeros(2).double(),
                    nfe=2,
                    num_dims=1,
                    step_index=torch.tensor([[0, 3], [3, 3]]),
                    step_nats=scale * math.log(2) * torch.tensor([[1.0, 2.0], [4.0, 6.0]], dtype=torch.float64),
                )
            )
            for scale in (1.0, 2.0)
        ]
    )
    assert sorted(means.steps) == [0, 3]
    assert means.steps[0].mean == pytest.approx(1.5) and means.steps[0].count == 2
    assert means.steps[3].mean == pytest.approx(np.mean([2, 4, 6, 4, 8, 12])) and means.steps[3].count == 6
    assert means.steps[3].stderr == pytest.approx(np.std([2, 4, 6, 4, 8, 12], ddof=1) / math.sqrt(6))


def test_shares_of_the_standard_error_are_those_of_the_mean_over_images():
    bits, num_dims = 3 * math.log(2), 3
    probes = bits * torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [5.0, 1.0]], dtype=torch.float64)
    zeros, draws = torch.zeros(2).double(), bits**2 * torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    report = Measurement(
        [
            values_of(
                LikelihoodTerms(
                    prior=zeros,
                    diffusion=probes[part].mean(1),
                    reconstruction=zeros,
                    nfe=2,
                    num_dims=num_dims,
                    probe_nats=probes[part],
                    sampling_variance=draws[part],
                )
            )
            for part in (slice(0, 2), slice(2, 4))
        ]
    ).report()
    # a mean of two probes a and b has variance (a - b)^2 / 4, and that of 4 images a sixteenth of their sum
    assert report["probe_stderr"] == pytest.approx(math.sqrt((1 + 0 + 4 + 4) / 16), rel=1e-12)
    assert report["sampling_stderr"] == pytest.approx(math.sqrt((1 + 2 + 3 + 6) / 16), rel=1e-12)


@pytest.mark.parametrize("class_conditional", [False, True])
def test_labels_go_to_models_with_classes_alone(class_conditional: bool):
    seen: list[Tensor | None] = []

    class Recorder:
        def __call__(self, model: object, x0: Tensor, *, cond: Tensor | None, noise: NoiseStreams) -> LikelihoodTerms:
            seen.append(cond)
            zeros = torch.zeros(len(x0)).double()
            return LikelihoodTerms(prior=zeros, diffusion=zeros, reconstruction=zeros, nfe=1, num_dims=1)

    images, labels = torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.tensor([3, 1, 2, 0, 3])
    dataset = ImageDataset(images, labels, 2, 4, "toy", "test")
    measure(Recorder(), None, dataset, batch_size=2, class_conditional=class_conditional)  # type: ignore[arg-type]
    if class_conditional:
        assert [part.tolist() for part in seen if part is not None] == [[3, 1], [2, 0], [3]]
    else:
        assert seen == [None] * 3


def test_unknown_standard_errors_are_null_in_json():
    value = without_nan({"a": math.nan, "b": [1.0, math.nan], "c": {"d": 2}})
    assert json.dumps(value) == '{"a": null, "b": [1.0, null], "c": {"d": 2}}'


@pytest.mark.parametrize("sampler", [DDIMSampler(num_steps=20, eta=0.5), AncestralSampler(num_steps=20)])
def test_draws_do_not_depend_on_the_batch_size(sampler: DDIMSampler | AncestralSampler):
    model = GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 3), covs=0.3 * torch.eye(3)[None])
    together, labels, nfe = draw(sampler, model, sample_shape=(3,), num_samples=7, batch_size=7, seed=5)
    apart, _, _ = draw(sampler, model, sample_shape=(3,), num_samples=7, batch_size=3, seed=5)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert labels.tolist() == [0] * 7 and nfe == 20
    other, _, _ = draw(sampler, model, sample_shape=(3,), num_samples=7, batch_size=7, seed=6)
    assert (other - together).abs().min() > 1e-4
