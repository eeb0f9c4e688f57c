"""Replacement, time travel and twisted particles; tests/proofs/test_proofs_inverse.py has their bias."""

import math

import pytest
import torch
from torch import Tensor

from models import (
    ClippedScoreModel,
    Condition,
    GaussianMixtureScoreModel,
    Inpainting,
    LabelledMixtureScoreModel,
    MatrixOperator,
    MMPSScoreModel,
    PiGDMScoreModel,
    ScoreModel,
)
from models.wrappers.classifier_guidance import ClassifierGuidedScoreModel
from samplers import ReplaceObserved, ResampledSampler, StepState, TwistedResult, TwistedSampler, make_sampler
from samplers.twisted import effective_number, systematic
from sde_lib import VE, VP, NoiseStreams, points_of

COV = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
FIRST = Inpainting((2,), mask=torch.tensor([True, False]))


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _gaussian() -> GaussianMixtureScoreModel:
    return GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 2), covs=COV[None])


def _start(sampler, model, count: int) -> tuple[Tensor, NoiseStreams]:
    noise = NoiseStreams(0, range(count))
    return sampler.prior_sample(model.sde, (2,), noise).double(), noise


def _state(x: Tensor, sde, t: float, seed: int = 0) -> StepState:
    (point,) = points_of(sde, torch.tensor([t], dtype=torch.float64))
    return StepState(0, 1, 1.0, t, point.alpha, point.sigma, x, sde, NoiseStreams(seed, range(len(x))))


def test_what_is_observed_has_the_law_of_the_measurement_with_noise():
    matrix = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 0.5]], dtype=torch.float64)
    operator, x, y = MatrixOperator(matrix), _normal(4000, 3), torch.tensor([0.7, -0.3]).double()
    y = y.expand(len(x), 2)
    for noise_std in (0.0, 0.2):
        state = _state(x, VP(), 0.5)
        found = ReplaceObserved(operator, y, noise_std=noise_std)(state)
        seen = operator.forward(found)
        cov = state.sigma**2 * matrix @ matrix.T - (state.alpha * noise_std) ** 2 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(seen.mean(0), state.alpha * y[0], rtol=0, atol=5 * state.sigma * 2.2 / 63)
        torch.testing.assert_close(torch.cov(seen.T), cov, rtol=0, atol=0.1 * float(cov.diagonal().max()))
        # what A does not see stays
        hidden = torch.linalg.svd(matrix).Vh[2]
        torch.testing.assert_close(found @ hidden, x @ hidden)


def test_a_state_with_less_noise_than_the_measurement_is_left_alone():
    x, y = _normal(5, 2), torch.ones(5, 1).double()
    assert torch.equal(ReplaceObserved(FIRST, y, noise_std=0.5)(_state(x, VP(), 0.01)), x)
    exact = ReplaceObserved(FIRST, y)(_state(x, VP(), 0.0))
    torch.testing.assert_close(exact, torch.stack([y[:, 0], x[:, 1]], 1))
    with pytest.raises(ValueError, match=r"gives observations \[1\], got \[2\]"):
        ReplaceObserved(FIRST, torch.ones(5, 2))
    with pytest.raises(ValueError, match="noise_std must be at least 0"):
        ReplaceObserved(FIRST, y, noise_std=-1.0)


def test_the_way_goes_back_and_down_again():
    sampler = ResampledSampler(num_steps=6, jump_length=2, num_resamples=2)
    points = points_of(VP(), sampler.times(VP()))
    place = {point.t: k for k, point in enumerate(points)}
    way = [(place[t.t], place[s.t]) for t, s in sampler.moves(points)]
    # the last point with noise is 5, the jumps start there and at 3
    assert way == [(0, 1), (1, 2), (2, 3), (3, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 3), (3, 4), (4, 5), (5, 6)]
    ve = ResampledSampler(num_steps=2, jump_length=1, num_resamples=2)
    points = points_of(VE(), ve.times(VE()))
    assert [s.sigma > t.sigma for t, s in ve.moves(points)] == [False, True, False, False, True, False]
    assert ve.sample(_on(VE()), torch.zeros(1, 2), noise=NoiseStreams(0, [0])).nfe == 5


def _on(sde) -> GaussianMixtureScoreModel:
    return GaussianMixtureScoreModel(sde, means=torch.zeros(1, 2), covs=COV[None])


def test_one_walk_is_the_inner_sampler_to_the_bit():
    model = _gaussian()
    for name in ("ancestral", "ddim"):
        inner = make_sampler(name, num_steps=9)
        x_T, noise = _start(inner, model, 4)
        alone = inner.sample(model, x_T, noise=noise).x0
        x_T, noise = _start(inner, model, 4)
        assert torch.equal(
            ResampledSampler(inner=name, num_steps=9, num_resamples=1).sample(model, x_T, noise=noise).x0, alone
        )
    with pytest.raises(ValueError, match="inner must be a sampler of single steps"):
        ResampledSampler(inner="unipc", num_steps=5)


def test_time_travel_of_an_exact_model_keeps_its_law():
    model, sampler = _gaussian(), ResampledSampler(num_steps=150, jump_length=5, num_resamples=2)
    x_T, noise = _start(sampler, model, 1500)
    torch.testing.assert_close(torch.cov(sampler.sample(model, x_T, noise=noise).x0.T), COV, rtol=0, atol=0.14)


MIXTURE = {
    "means": torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64),
    "covs": torch.stack([0.1 * torch.eye(2), torch.tensor([[0.3, -0.2], [-0.2, 0.3]])]).double(),
    "weights": [0.6, 0.4],
}


def test_particles_mend_the_weight_of_a_mode_and_give_the_evidence():
    prior = GaussianMixtureScoreModel(VP(), **MIXTURE)
    operator, y, s, count = MatrixOperator(torch.tensor([[1.0, -0.3]])), torch.tensor([0.2]).double(), 0.5, 300
    exact = prior.posterior(operator.matrix, y, noise_std=s)
    weight = float(exact.log_weights.exp()[1])
    told = Condition(measurement=y.expand(count, 1).clone())
    model = PiGDMScoreModel(prior, operator, noise_std=s)

    def share(sampler) -> tuple[float, object]:
        x_T, noise = _start(sampler, prior, count)
        found = sampler.sample(model, x_T, cond=told, noise=noise)
        return float((found.x0.sum(1) > 0).double().mean()), found

    many, result = share(TwistedSampler(num_particles=64, num_steps=40))
    stderr = math.sqrt(weight * (1 - weight) / count)
    assert abs(many - weight) < 3 * stderr, (many, weight)
    # one particle is guidance alone, which is further off than the error of so many samples
    assert abs(share(TwistedSampler(num_particles=1, num_steps=40))[0] - weight) > 3 * stderr
    covs = operator.matrix @ prior.covs() @ operator.matrix.T + s**2 * torch.eye(1)
    normal = torch.distributions.Normal((prior.means @ operator.matrix.T)[:, 0], covs[:, 0, 0].sqrt())
    log_evidence = float((prior.log_weights + normal.log_prob(y)).logsumexp(0))
    found = result.log_evidence.exp()
    assert (
        abs(float(found.mean()) / math.exp(log_evidence) - 1)
        < 4 * float(found.std()) / math.sqrt(count) / math.exp(log_evidence) + 0.05
    )
    assert result.nfe == 40 and bool((result.effective <= 64).all())


def test_a_classifier_may_be_the_twist():
    mixture = LabelledMixtureScoreModel(VP(), **MIXTURE, labels=[0, 1])
    model = ClassifierGuidedScoreModel(GaussianMixtureScoreModel(VP(), **MIXTURE), mixture)
    sampler = TwistedSampler(num_particles=16, num_steps=40)
    x_T, noise = _start(sampler, model, 200)
    found = sampler.sample(model, x_T, cond=torch.ones(200, dtype=torch.int64), noise=noise)
    wanted = mixture.of_class(1)
    torch.testing.assert_close(found.x0.mean(0), wanted.means[0], rtol=0, atol=4 * math.sqrt(0.3 / 200))
    torch.testing.assert_close(torch.cov(found.x0.T), wanted.covs()[0], rtol=0, atol=0.15)
    torch.testing.assert_close(found.log_evidence.exp().mean(), torch.tensor(0.4).double(), rtol=0, atol=0.05)


def test_a_sample_of_particles_does_not_depend_on_its_batch_mates():
    model = PiGDMScoreModel(_gaussian(), FIRST, noise_std=0.3)
    sampler, y = TwistedSampler(num_particles=5, num_steps=12), _normal(4, 1)
    noise = NoiseStreams(3, range(4))
    x_T = sampler.prior_sample(model.sde, (2,), noise).double()
    whole = sampler.sample(model, x_T, cond=Condition(measurement=y), noise=noise)
    noise = NoiseStreams(3, [2, 3])
    x_T = sampler.prior_sample(model.sde, (2,), noise).double()
    part = sampler.sample(model, x_T, cond=Condition(measurement=y[2:]), noise=noise)
    torch.testing.assert_close(part.x0, whole.x0[2:], rtol=0, atol=1e-12)
    torch.testing.assert_close(part.log_evidence, whole.log_evidence[2:], rtol=0, atol=1e-10)


def test_particles_of_a_bounded_chain_stay_in_its_bounds():
    model, y = PiGDMScoreModel(_gaussian(), FIRST, noise_std=0.3), torch.full((30, 1), 1.5, dtype=torch.float64)
    sampler, told = TwistedSampler(num_particles=5, num_steps=12), Condition(measurement=y)

    def drawn(bounded: ScoreModel) -> TwistedResult:
        x_T, noise = _start(sampler, model, 30)
        return sampler.sample(bounded, x_T, cond=told, noise=noise)

    plain, wide, narrow = drawn(model), *(drawn(ClippedScoreModel(model, low=-c, high=c)) for c in (1e3, 1.0))
    torch.testing.assert_close(wide.x0, plain.x0)
    torch.testing.assert_close(wide.log_evidence, plain.log_evidence)
    assert float(plain.x0.max()) > 1 >= float(narrow.x0.abs().max()) and narrow.nfe == plain.nfe == 12


def test_systematic_resampling_and_the_effective_number():
    log_weights = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).double().log()
    parents = systematic(log_weights, torch.tensor([0.5, 0.5]).double())
    assert parents.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]
    torch.testing.assert_close(effective_number(log_weights), torch.tensor([8 / 3, 1.0]).double())
    # each is a parent K w times on average over the place
    places = (torch.arange(400) + 0.5) / 400
    found = systematic(log_weights[:1].expand(400, 4), places.double())
    counts = torch.stack([(found == k).double().sum(1).mean() for k in range(4)])
    torch.testing.assert_close(counts, torch.tensor([2.0, 1.0, 1.0, 0.0]).double(), rtol=0, atol=0.02)


def test_what_particles_cannot_do_is_refused_in_one_line():
    sampler = TwistedSampler(num_particles=2, num_steps=3)
    observed = MMPSScoreModel(_gaussian(), FIRST, noise_std=0.1)
    for model in (_gaussian(), observed, ClippedScoreModel(observed)):
        with pytest.raises(ValueError, match="needs a model with a likelihood, got"):
            sampler.sample(model, torch.zeros(1, 2))
    model = PiGDMScoreModel(_gaussian(), FIRST, noise_std=0.0)
    with pytest.raises(ValueError, match="the likelihood of data needs noise_std above 0"):
        sampler.sample(model, torch.zeros(1, 2), cond=Condition(measurement=torch.zeros(1, 1)))
    with pytest.raises(ValueError, match="ess_threshold must lie in"):
        TwistedSampler(ess_threshold=2.0, num_steps=3)
    for option in ({"record_trajectory": True}, {"denoise_final": False}):
        with pytest.raises(ValueError, match="particles keep no trajectory and end in x0"):
            TwistedSampler(num_steps=3, **option)
