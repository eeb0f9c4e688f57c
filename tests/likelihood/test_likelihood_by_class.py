"""Likelihoods of every class against Bayes' rule; common draws; classes that are dropped."""

import pytest
import torch
from likelihood_oracles import rescaled_ddpm

from evaluation.classification import class_log_probs
from likelihood import ContinuousBound, FlowLikelihood, LikelihoodByClass, VariationalBound
from models import DiscreteScoreModel, LabelledMixtureScoreModel, Prediction, ScoreModel, ToldAboveScoreModel
from sde_lib import VP, NoiseStreams

POINTS = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 2)
RANDOM = torch.rand(3, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
MILD, CLEAR = ((RANDOM + 0.5), RANDOM**3)


class LabelledPoints(ScoreModel):
    """The exact denoiser of two pixels of three levels, whose nine images have other probabilities in each class.

    Label -1 is the last of its denoisers, of images of any class.
    """

    def __init__(self, sde, weights=MILD):
        super().__init__(sde)
        self.probs = weights / weights.sum(1, keepdim=True)
        self.classes = [DiscreteScoreModel(sde, points=POINTS, probs=probs.tolist()) for probs in self.probs]
        self.classes.append(DiscreteScoreModel(sde, points=POINTS, probs=self.probs.mean(0).tolist()))

    def forward(self, x_t, t, *, cond=None):
        answers = [model(x_t, t) for model in self.classes]
        x0, eps = (
            torch.stack([getattr(answer, name) for answer in answers])[cond, range(len(x_t))] for name in ("x0", "eps")
        )
        return Prediction(x0=x0, eps=eps, sigma=self.sde.sigma(t))


def bound(**settings):
    return VariationalBound(num_levels=3, **settings)


def by_class(estimator, model, x0, label=None, seed=0, indices=None, **settings):
    streams = NoiseStreams(seed, range(len(x0)) if indices is None else indices)
    label = torch.zeros(len(x0), dtype=torch.int64) if label is None else label
    return LikelihoodByClass(estimator, num_classes=3, **settings)(model, x0, cond=label, noise=streams)


def test_the_flow_gives_bayes_posterior_and_bayes_accuracy():
    generator = torch.Generator().manual_seed(1)
    means = torch.tensor([[-0.8, 0.3], [0.6, -0.4], [0.2, 0.7], [0.9, 0.9]], dtype=torch.float64)
    factors = 0.4 * torch.randn(4, 2, 2, generator=generator, dtype=torch.float64)
    weights = [1 / 3, 1 / 3, 1 / 6, 1 / 6]
    model = LabelledMixtureScoreModel(
        VP(beta_max=50.0),
        means=means,
        covs=factors @ factors.mT + 0.05 * torch.eye(2),
        labels=[0, 1, 2, 2],
        weights=weights,
    )
    x0 = model.sample_data(12, generator)
    flow = FlowLikelihood(dequantization="none", divergence="exact", rtol=1e-6, atol=1e-6)
    log_probs = class_log_probs(by_class(flow, model, x0).class_nats)
    t = flow.noisy_times(model.sde)[:1].expand(12)
    exact = model.class_log_prob(model.sde.alpha(t)[:, None] * x0, t)
    torch.testing.assert_close(log_probs.exp(), exact.exp(), rtol=0, atol=1e-5)
    assert torch.equal(log_probs.argmax(1), exact.argmax(1))
    assert float((exact.exp().max(1).values < 0.9).double().mean()) > 0.02  # it is no easy case


def test_the_bounds_posterior_tends_to_the_exact_one():
    copies, errors = 20, []
    for num_steps in (10, 40, 160):
        model = LabelledPoints(rescaled_ddpm(num_steps))
        nats = by_class(bound(), model, POINTS.repeat_interleave(copies, 0)).class_nats
        log_probs = class_log_probs(nats.unflatten(0, (9, copies)).mean(1))
        errors.append(float((log_probs.exp() - model.probs.T / model.probs.T.sum(1, keepdim=True)).abs().max()))
    assert errors[2] < 0.03 and errors[2] < 0.4 * errors[1] < 0.16 * errors[0], errors


class FaultyNextToTheData(LabelledPoints):
    """Answers differently for each class where x_t shows the image, and the class changes nothing."""

    def forward(self, x_t, t, *, cond=None):
        right = super().forward(x_t, t, cond=cond)
        fault = 0.01 * (cond + 1) * (t <= 0.03)
        return Prediction(right.x0 + fault[:, None], right.eps, right.sigma)


def test_classes_told_above_a_time_are_free_of_what_is_wrong_below():
    sde, x0 = rescaled_ddpm(160), POINTS.repeat_interleave(5, 0)
    right, faulty = LabelledPoints(sde), FaultyNextToTheData(sde)
    exact = by_class(bound(), right, x0).class_nats
    mended = by_class(bound(), ToldAboveScoreModel(faulty, t_min=0.03), x0).class_nats
    torch.testing.assert_close(mended, exact, rtol=1e-9, atol=1e-9)
    assert float((by_class(bound(), faulty, x0).class_nats - exact)[:, 2].mean()) > 0.5


def test_all_classes_see_the_same_draws():
    sde = rescaled_ddpm(50)
    blind = DiscreteScoreModel(sde, points=POINTS, probs=[1 / 9] * 9)
    for estimator in (bound(steps_per_image=4), ContinuousBound(num_levels=3, steps_per_image=4)):
        terms = by_class(estimator, blind, POINTS, rounds=2, null=True)
        assert torch.equal(terms.class_nats, terms.class_nats[:, :1].expand(-1, 3))
        torch.testing.assert_close(terms.null_nats, terms.class_nats[:, 0], rtol=1e-12, atol=0)


def test_common_draws_take_noise_out_of_the_differences():
    model, x0 = LabelledPoints(rescaled_ddpm(50)), POINTS[4].expand(100, 2).contiguous()
    common = by_class(bound(steps_per_image=4), model, x0).class_nats
    others = by_class(bound(steps_per_image=4), model, x0, seed=1).class_nats
    variance = [float((common[:, 0] - nats[:, 1]).var()) for nats in (common, others)]
    assert variance[0] < 0.2 * variance[1], variance


def test_the_terms_of_the_own_class_are_those_of_the_estimator_itself():
    model, label = LabelledPoints(rescaled_ddpm(50)), torch.arange(9) % 3
    estimator = bound(steps_per_image=4)
    alone = estimator(model, POINTS, cond=label, noise=NoiseStreams(0, range(9)))
    terms = by_class(estimator, model, POINTS, label)
    for name in ("prior", "diffusion", "reconstruction"):
        torch.testing.assert_close(getattr(terms, name), getattr(alone, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.class_nats[range(9), label], alone.total, rtol=1e-12, atol=1e-12)
    assert terms.class_calls.tolist() == [3 * alone.nfe] * 9 and terms.nfe == 3 * alone.nfe


def test_classes_that_cannot_win_are_dropped_and_the_answer_stays():
    model, x0 = LabelledPoints(rescaled_ddpm(50), CLEAR), POINTS.repeat_interleave(6, 0)
    estimator = bound(steps_per_image=16, step_sampling="importance")
    estimator.fit_steps(model, POINTS, cond=torch.arange(9) % 3, noise=NoiseStreams(9, range(9)))
    whole, less = (by_class(estimator, model, x0, rounds=4, z=z) for z in (0.0, 3.0))
    assert bool((whole.class_rounds == 4).all()) and int(less.class_rounds.min()) == 1
    assert int(less.class_calls.sum()) < 0.8 * int(whole.class_calls.sum())
    assert torch.equal(less.class_calls, 17 * less.class_rounds.sum(1))
    decided = class_log_probs(whole.class_nats).exp().max(1).values > 0.8
    assert 20 < int(decided.sum()) < 54
    assert torch.equal(less.class_nats.argmin(1)[decided], whole.class_nats.argmin(1)[decided])
    kept = less.class_rounds == 4
    torch.testing.assert_close(less.class_nats[kept], whole.class_nats[kept], rtol=1e-12, atol=1e-12)


def test_a_dropped_class_keeps_its_distance_from_the_best_one():
    model, x0 = LabelledPoints(rescaled_ddpm(50), CLEAR), POINTS.repeat_interleave(20, 0)
    estimator = bound(steps_per_image=4, step_sampling="importance")
    estimator.fit_steps(model, POINTS, cond=torch.arange(9) % 3, noise=NoiseStreams(9, range(9)))
    once, terms = by_class(estimator, model, x0), by_class(estimator, model, x0, rounds=4, z=3.0)
    rows, best = torch.arange(len(x0)), terms.class_nats.argmin(1)
    # the draws of later rounds move the best class, and would else lift it above one that was dropped
    assert torch.equal(terms.class_rounds[rows, best], terms.class_rounds.amax(1))
    then = once.class_nats.argmin(1)
    at_once = (terms.class_rounds == 1) & (terms.class_rounds[rows, then] == 4)[:, None]
    ours, theirs = (nats - nats[rows, then][:, None] for nats in (terms.class_nats, once.class_nats))
    assert int(at_once.sum()) > 20
    torch.testing.assert_close(ours[at_once], theirs[at_once], rtol=0, atol=1e-10)


def test_no_image_depends_on_its_batch_mates():
    model, x0 = LabelledPoints(rescaled_ddpm(50), CLEAR), POINTS.repeat_interleave(2, 0)
    settings = {"rounds": 3, "z": 2.0}
    whole = by_class(bound(steps_per_image=6), model, x0, **settings)
    parts = [by_class(bound(steps_per_image=6), model, x0[k::3], indices=range(k, 18, 3), **settings) for k in range(3)]
    for k, part in enumerate(parts):
        assert torch.equal(part.class_rounds, whole.class_rounds[k::3])
        torch.testing.assert_close(part.class_nats, whole.class_nats[k::3], rtol=1e-10, atol=1e-10)


def test_bad_input():
    for settings, message in (
        ({"num_classes": 1}, "num_classes must be at least 2, a whole number, got 1"),
        ({"num_classes": 3, "rounds": 0}, "rounds must be at least 1, a whole number, got 0"),
        ({"num_classes": 3, "z": -1.0}, "z must be a number of standard errors"),
    ):
        with pytest.raises(ValueError, match=message):
            LikelihoodByClass(bound(), **settings)
    continuous = ContinuousBound(num_levels=3, steps_per_image=4)
    for estimator in (FlowLikelihood(num_levels=3), bound(steps_per_image=1), continuous):
        with pytest.raises(ValueError, match="drops classes by the spread of two or more terms"):
            LikelihoodByClass(estimator, num_classes=3, z=3.0)
    with pytest.raises(ValueError, match="cond must be each image's own class, got None"):
        LikelihoodByClass(bound(), num_classes=3)(LabelledPoints(rescaled_ddpm(20)), POINTS)


def test_three_quarters_of_the_steps_are_drawn_where_classes_differ():
    """Of a chain of few steps all are knots, so that the weights are those of the pilot's own terms."""
    model, count = LabelledPoints(rescaled_ddpm(20)), 90
    x0, noise = POINTS[torch.arange(count) % len(POINTS)], NoiseStreams(8, range(count))
    sampled = bound(steps_per_image=4, step_sampling="importance")
    whole, fitted = [], {}
    for c in range(3):
        label = torch.full((count,), c)
        # with the noise of fit_steps: one draw of each step
        fitted[c] = sampled.fit_steps(model, x0, cond=label, noise=NoiseStreams(8, range(count)), num_knots=200)
        whole.append(sampled._pilot_terms(model, x0, label, NoiseStreams(8, range(count)), 200))
    weights = sampled.fit_steps(model, x0, noise=noise, num_classes=3, num_knots=200)
    terms = torch.stack(whole)
    of_terms, of_differences = (one.square().mean((0, 1)).sqrt() for one in (terms, terms - terms.mean(0)))
    expected = 0.25 * of_terms / of_terms.sum() + 0.75 * of_differences / of_differences.sum()
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fitted[1], terms[1].square().mean(0).sqrt(), rtol=1e-6, atol=1e-9)
    assert ((weights - fitted[1] / fitted[1].sum()).abs() > 0.01).any()


def test_the_decoder_is_the_mean_of_its_draws():
    model, label = LabelledPoints(rescaled_ddpm(20)), torch.arange(9) % 3
    for draws in (1, 7):
        # a coarse grid, so that the last point has noise enough for L_0 to vary
        coarse = bound(num_steps=3, decoder_draws=draws)
        terms = coarse(model, POINTS, cond=label, noise=NoiseStreams(0, range(9)))
        assert terms.decoder_nats.shape == (9, draws) and terms.nfe == 2 + draws
        torch.testing.assert_close(terms.reconstruction, terms.decoder_nats.mean(1))
    assert bool((terms.decoder_nats.std(1) > 0.01).all())
    with pytest.raises(ValueError, match="decoder_draws must be at least 1, a whole number, got 0"):
        bound(decoder_draws=0)


def test_a_class_is_kept_while_the_decoders_noise_may_explain_its_distance():
    by = LikelihoodByClass(bound(steps_per_image=4), num_classes=2, rounds=2, z=3.0)
    nats, shares = torch.tensor([[0.0, 4.0]]).double(), [torch.zeros(1, 2, 4).double()]
    for spread, stays in ((0.1, False), (4.0, True)):
        decoded = torch.zeros(1, 2, 2).double()
        decoded[0, 1] = torch.tensor([4 - spread, 4 + spread])
        undecided, best = by._undecided(torch.ones(1, 2, dtype=torch.bool), nats, shares, [decoded])
        assert best.item() == 0 and bool(undecided.all()) is stays


def test_without_a_class_the_distance_is_that_of_the_first_round():
    model, x0 = LabelledPoints(rescaled_ddpm(50)), POINTS.repeat_interleave(3, 0)

    class Blind(ScoreModel):
        def forward(self, x_t, t, *, cond=None):
            return model(x_t, t, cond=cond.clamp(min=0))  # without a class it takes class 0

    blind = Blind(model.sde)
    for z in (0.0, 2.0):
        terms = by_class(bound(steps_per_image=4), blind, x0, rounds=3, null=True, z=z)
        once = by_class(bound(steps_per_image=4), blind, x0, null=True)
        assert torch.equal(once.null_nats, once.class_nats[:, 0])
        best = once.class_nats.argmin(1)
        distance = once.null_nats - once.class_nats[range(len(x0)), best]
        torch.testing.assert_close(terms.null_nats - terms.class_nats[range(len(x0)), best], distance)
