"""The oracles that are told a condition, against Bayes' rule, automatic differentiation and one another."""

import pytest
import torch

from models import (
    Condition,
    GaussianMixtureScoreModel,
    LabelledMixtureScoreModel,
    LinearGaussianScoreModel,
    ObservedGaussianScoreModel,
)
from samplers import make_sampler
from sde_lib import VP, NoiseStreams, make_sde

SDES = ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"]
TIMES = torch.tensor([0.01, 0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
LABELS, WEIGHTS = [0, 1, 1, 2], [0.1, 0.3, 0.2, 0.4]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(count, dim, seed=1):
    factors = draw(count, dim, dim, seed=seed)
    return factors @ factors.mT


def labelled(sde):
    return LabelledMixtureScoreModel(sde, means=draw(4, 3), covs=covariances(4, 3), labels=LABELS, weights=WEIGHTS)


def noisy(model):
    return model.sde.perturb(model.sample_data(5, torch.Generator().manual_seed(2)), TIMES, draw(5, 3, seed=3))


@pytest.mark.parametrize("sde_name", SDES)
def test_a_label_picks_the_mixture_of_its_class(sde_name):
    model = labelled(make_sde(sde_name))
    x_t = noisy(model)
    torch.testing.assert_close(model.class_probs(), torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64))
    label = torch.tensor([0, 1, 2, -1, 1])
    told, density = model(x_t, TIMES, cond=label), model.log_prob(x_t, TIMES, cond=Condition(label=label))
    for k, c in enumerate(label.tolist()):
        alone = model.of_class(c) if c >= 0 else GaussianMixtureScoreModel(
            model.sde, means=draw(4, 3), covs=covariances(4, 3), weights=WEIGHTS
        )  # fmt: skip
        row = slice(k, k + 1)
        expected = alone(x_t[row], TIMES[row])
        torch.testing.assert_close(told.x0[row], expected.x0, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(told.eps[row], expected.eps, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(density[row], alone.log_prob(x_t[row], TIMES[row]), rtol=1e-11, atol=1e-11)
    assert torch.equal(model(x_t, TIMES).eps, model(x_t, TIMES, cond=torch.full((5,), -1)).eps)


@pytest.mark.parametrize("sde_name", SDES)
def test_the_score_and_the_class_s_gradient_are_the_class_s_score(sde_name):
    """Bayes: log p_t(x | c) = log p_t(x) + log p(c | x_t) - log p(c), and so for the gradients."""
    model = labelled(make_sde(sde_name))
    x_t = noisy(model)
    classes = model.class_log_prob(x_t, TIMES)
    torch.testing.assert_close(classes.exp().sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-13)
    for c in range(3):
        label = torch.full((5,), c)
        bayes = model.log_prob(x_t, TIMES) + classes[:, c] - model.class_probs()[c].log()
        torch.testing.assert_close(model.log_prob(x_t, TIMES, cond=label), bayes, rtol=1e-12, atol=1e-12)
        leaf = x_t.clone().requires_grad_(True)
        gradient = torch.autograd.grad(model.class_log_prob(leaf, TIMES)[:, c].sum(), leaf)[0]
        expected = model(x_t, TIMES, cond=label).score
        sigma = model.sde.sigma(TIMES)[:, None]
        torch.testing.assert_close(model.grad_log_prob(x_t, TIMES, label), gradient)
        # in units of the noise, in which scores are of one size
        torch.testing.assert_close(
            sigma * (model(x_t, TIMES).score + gradient), sigma * expected, rtol=1e-11, atol=1e-12
        )


def test_samplers_hand_the_label_on_to_the_class_s_law():
    model = labelled(VP())
    x_T = draw(2000, 3, seed=4)
    x0 = make_sampler("dpm_solver_pp", num_steps=60, grid="log_snr").sample(
        model, x_T, cond=torch.full((2000,), 1), noise=NoiseStreams(0, range(2000))
    ).x0  # fmt: skip
    mean, cov = model.of_class(1).mean_and_cov()
    assert float((x0.mean(0) - mean).abs().max()) < 5 * float(cov.diagonal().max() / 2000) ** 0.5
    torch.testing.assert_close(x0.T.cov(), cov, rtol=0.15, atol=0.15 * float(cov.diagonal().max()))


def linear(sde):
    return LinearGaussianScoreModel(
        sde,
        weight=draw(4, 2, seed=5),
        bias=draw(4, seed=6),
        cov=covariances(1, 4)[0],
        cond_mean=draw(2, seed=7),
        cond_cov=covariances(1, 2, seed=8)[0],
    )


@pytest.mark.parametrize("sde_name", SDES)
def test_a_linear_condition_moves_the_mean_and_none_widens_the_covariance(sde_name):
    model = linear(make_sde(sde_name))
    W, b, C = draw(4, 2, seed=5), draw(4, seed=6), covariances(1, 4)[0]
    values = draw(5, 2, seed=9)
    values[3] = torch.nan
    values[4, 1] = torch.nan  # of two numbers one is no condition
    x_t = draw(5, 4, seed=10)
    found = model(x_t, TIMES, cond=Condition(values=values))
    for k in range(5):
        mean, cov = W @ values[k] + b, C
        if k > 2:
            mean, cov = W @ draw(2, seed=7) + b, C + W @ covariances(1, 2, seed=8)[0] @ W.mT
        row = slice(k, k + 1)
        expected = GaussianMixtureScoreModel(model.sde, means=mean[None], covs=cov[None])(x_t[row], TIMES[row])
        torch.testing.assert_close(found.x0[row], expected.x0, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.eps[row], expected.eps, rtol=1e-10, atol=1e-10)
    alone = model(x_t[3:4], TIMES[3:4])
    torch.testing.assert_close(alone.eps, found.eps[3:4], rtol=1e-13, atol=1e-13)
    # images, of the condition and of the sample
    told = model(x_t.view(5, 1, 2, 2), TIMES, cond=Condition(image=values.view(5, 1, 1, 2)))
    assert torch.equal(told.x0.view(5, 4), found.x0) and torch.equal(told.eps.view(5, 4), found.eps)


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_posterior_of_a_mixture_is_bayes_rule(noise_std):
    prior = GaussianMixtureScoreModel(VP(), means=draw(4, 3), covs=covariances(4, 3), weights=WEIGHTS)
    A, y = draw(2, 3, seed=11), draw(2, seed=12)
    posterior = prior.posterior(A, y, noise_std=noise_std)
    mean, cov = posterior.mean_and_cov()
    observed = torch.distributions.MultivariateNormal(
        prior.means @ A.mT, A @ prior.covs() @ A.mT + noise_std**2 * torch.eye(2, dtype=torch.float64)
    )
    shares = prior.log_weights + observed.log_prob(y)
    torch.testing.assert_close(posterior.log_weights.exp(), shares.softmax(0), rtol=1e-9, atol=1e-12)
    if noise_std == 0:
        torch.testing.assert_close(A @ mean, y, rtol=0, atol=1e-11)
        assert float((A @ cov @ A.mT).abs().max()) < 1e-10
        return

    # log p(x | y) - log p(x) - log p(y | x) is -log p(y), whatever x
    def log_density(model, x):
        normals = torch.distributions.MultivariateNormal(model.means, model.covs())
        return (model.log_weights + normals.log_prob(x[:, None])).logsumexp(1)

    x = draw(50, 3, seed=13)
    likelihood = torch.distributions.Normal(x @ A.mT, noise_std).log_prob(y).sum(1)
    evidence = log_density(prior, x) + likelihood - log_density(posterior, x)
    assert float(evidence.max() - evidence.min()) < 1e-8
    assert float(evidence[0]) == pytest.approx(float(shares.logsumexp(0)), abs=1e-8)


def test_the_linear_oracle_of_an_observation_is_the_posterior():
    mean, cov, A, s = draw(4, seed=14), covariances(1, 4)[0], draw(2, 4, seed=15), 0.5
    gain = cov @ A.mT @ (A @ cov @ A.mT + s**2 * torch.eye(2, dtype=torch.float64)).inverse()
    told = LinearGaussianScoreModel(
        VP(), weight=gain, bias=mean - gain @ A @ mean, cov=(torch.eye(4) - gain @ A) @ cov,
        cond_mean=A @ mean, cond_cov=A @ cov @ A.mT + s**2 * torch.eye(2),
    )  # fmt: skip
    prior = GaussianMixtureScoreModel(VP(), means=mean[None], covs=cov[None])
    y, x_t = draw(5, 2, seed=16), draw(5, 4, seed=17)
    found = told(x_t, TIMES, cond=Condition(values=y))
    for k in range(5):
        row = slice(k, k + 1)
        expected = prior.posterior(A, y[k], noise_std=s)(x_t[row], TIMES[row])
        torch.testing.assert_close(found.eps[row], expected.eps, rtol=1e-9, atol=1e-9)
    # what is told nothing is the prior
    torch.testing.assert_close(told(x_t, TIMES).eps, prior(x_t, TIMES).eps, rtol=1e-9, atol=1e-9)


def refuses(work, *words):
    with pytest.raises(ValueError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and ";" in message and all(word in message for word in words), message


def test_bad_labels_are_refused_in_one_line():
    model, x_t = labelled(VP()), draw(5, 3)
    refuses(lambda: model(x_t, TIMES, cond=torch.full((5,), 3)), "[-1, 2]", "got 3 to 3")
    refuses(lambda: model(x_t, TIMES, cond=Condition(values=draw(5, 1))), "labels alone", "values")
    with pytest.raises(ValueError, match="cond"):
        model(x_t, TIMES, cond=torch.zeros(4).long())
    for labels in ([0, 2, 2, 3], [0, 1, 2], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="without a gap"):
            LabelledMixtureScoreModel(VP(), means=draw(4, 3), covs=covariances(4, 3), labels=labels)


def test_bad_linear_conditions_are_refused_in_one_line():
    model, x_t, cov = linear(VP()), draw(5, 4), covariances(1, 4)[0]
    refuses(lambda: model(x_t, TIMES, cond=Condition(values=draw(5, 3))), "2 numbers", "[5, 3]")
    refuses(lambda: model(x_t, TIMES, cond=torch.zeros(5).long()), "values or an image", "label")
    refuses(lambda: LinearGaussianScoreModel(VP(), weight=draw(4, 2), bias=draw(3), cov=cov), "[4, 2]", "[3]")
    refuses(lambda: LinearGaussianScoreModel(VP(), weight=draw(4, 2), bias=draw(4), cov=-cov), "cov must be symmetric")


def test_bad_observations_are_refused_in_one_line():
    model, twice = labelled(VP()), torch.ones(2, 3, dtype=torch.float64)
    refuses(lambda: model.posterior(twice, draw(2), noise_std=0.0), "no density", "raise it")
    refuses(lambda: model.posterior(draw(2, 4), draw(2), noise_std=1.0), "[M, 3]", "[2, 4]")
    refuses(lambda: model.posterior(draw(2, 3), draw(2), noise_std=-0.1), "noise_std must be at least 0", "got -0.1")


@pytest.mark.parametrize("sde_name", ["vp", "ve", "ddpm"])
def test_a_noisy_image_of_any_level_is_told_as_bayes_rule_says(sde_name):
    """x given y_s is the posterior of the plain Gaussian under a linear observation, of each sample's own level."""
    sde, mean, (cov,), operator = make_sde(sde_name), draw(4), covariances(1, 4), draw(2, 4, seed=5)
    model = ObservedGaussianScoreModel(sde, mean=mean, cov=cov, operator=operator)
    plain = GaussianMixtureScoreModel(sde, means=mean[None], covs=cov[None])
    s = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.8], dtype=torch.float64)
    y, x_t = draw(5, 2, seed=6), draw(5, 4, seed=7)
    cond = Condition(image=y.reshape(5, 1, 1, 2), image_log_snr=sde.log_snr(s))
    told, clean = model(x_t, TIMES, cond=cond), model(x_t, TIMES, cond=Condition(image=y.reshape(5, 1, 1, 2)))
    for k, (alpha, sigma) in enumerate(zip(*sde.alpha_sigma(s), strict=True)):
        # y_s / alpha = A x + noise of sigma / alpha
        for found, posterior in (
            (told, plain.posterior(operator, y[k] / alpha, noise_std=float(sigma / alpha))),
            (clean, plain.posterior(operator, y[k], noise_std=0)),
        ):
            expected = posterior(x_t[k : k + 1], TIMES[k : k + 1])
            torch.testing.assert_close(found.x0[k], expected.x0[0], rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(found.eps[k], expected.eps[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model(x_t, TIMES).x0, plain(x_t, TIMES).x0)
    # an image as large as x is read through A
    whole = Condition(image=x_t.reshape(5, 1, 2, 2))
    through = Condition(image=(x_t @ operator.mT).reshape(5, 1, 1, 2))
    torch.testing.assert_close(model(x_t, TIMES, cond=whole).x0, model(x_t, TIMES, cond=through).x0)
