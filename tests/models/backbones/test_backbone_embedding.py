"""Embeddings against arbitrary-precision formulas, and the promises of the class table."""

import math

import pytest
import torch

from models.backbones import ConditioningEmbedding, FourierEmbedding, sinusoidal_embedding

TIMES = [0.0, 0.5, 1.0, 499.123456789, 998.0, 999.0]


def exact_features(phases, cos_first):
    mpmath = pytest.importorskip("mpmath")
    sines, cosines = [mpmath.sin(p) for p in phases], [mpmath.cos(p) for p in phases]
    return [float(value) for value in (cosines + sines if cos_first else sines + cosines)]


@pytest.mark.parametrize("dim", [4, 32, 128])
@pytest.mark.parametrize("cos_first", [False, True])
def test_sinusoidal_embedding_is_the_formula(dim, cos_first):
    mpmath = pytest.importorskip("mpmath")
    half = dim // 2
    with mpmath.workdps(40):
        powers = [mpmath.mpf(i) / (half if cos_first else half - 1) for i in range(half)]
        expected = [exact_features([mpmath.mpf(t) * mpmath.mpf(10000) ** -p for p in powers], cos_first) for t in TIMES]
    expected = torch.tensor(expected, dtype=torch.float64)
    t = torch.tensor(TIMES, dtype=torch.float64)
    double = sinusoidal_embedding(t, dim, cos_first=cos_first, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert (double - expected).abs().max() < 1e-12
    single = sinusoidal_embedding(t, dim, cos_first=cos_first)
    assert torch.equal(single, double.float())  # the phase was never rounded to float32


def test_sinusoidal_embedding_takes_integer_and_float32_labels():
    exact = sinusoidal_embedding(torch.tensor([0.0, 7.0, 999.0], dtype=torch.float64), 64)
    assert torch.equal(sinusoidal_embedding(torch.tensor([0, 7, 999]), 64), exact)
    assert torch.equal(sinusoidal_embedding(torch.tensor([0.0, 7.0, 999.0]), 64), exact)


def test_fourier_embedding_is_the_formula():
    mpmath = pytest.importorskip("mpmath")
    embedding = FourierEmbedding(16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([-4.6, 0.3, 7.2], dtype=torch.float64)
    with mpmath.workdps(40):
        expected = torch.tensor(
            [
                exact_features(
                    [2 * mpmath.pi * mpmath.mpf(w) * mpmath.mpf(c) for w in embedding.frequencies.tolist()], False
                )
                for c in labels.tolist()
            ],
            dtype=torch.float64,
        )
    assert (embedding(labels, dtype=torch.float64) - expected).abs().max() < 1e-12
    assert torch.equal(embedding(labels), embedding(labels, dtype=torch.float64).float())


def test_fourier_frequencies_are_fixed_saved_and_of_the_given_scale():
    embedding = FourierEmbedding(20000, scale=3.0, generator=torch.Generator().manual_seed(1))
    assert embedding.frequencies.std().item() == pytest.approx(3.0, rel=5 * math.sqrt(0.5 / 10000))
    assert not list(embedding.parameters())
    assert list(embedding.state_dict()) == ["frequencies"]


@pytest.mark.parametrize("kind", ["sin_first", "cos_first", "fourier"])
def test_conditioning_is_the_formula(kind):
    torch.manual_seed(2)
    embedding = ConditioningEmbedding(8, 12, num_classes=3, null_condition=True, kind=kind).double()
    labels, cond = torch.tensor([0.1, 2.5, 999.0], dtype=torch.float64), torch.tensor([2, -1, 0])
    if kind == "fourier":
        features = embedding.fourier(labels)
    else:
        features = sinusoidal_embedding(labels, 8, cos_first=kind == "cos_first", dtype=torch.float64)

    def silu(x):
        return x / (1 + torch.exp(-x))

    hidden = silu(features @ embedding.linear1.weight.T + embedding.linear1.bias)
    hidden = hidden @ embedding.linear2.weight.T + embedding.linear2.bias
    rows = torch.stack([embedding.class_table.weight[2], torch.zeros(12).double(), embedding.class_table.weight[0]])
    torch.testing.assert_close(embedding(labels, cond, 3), silu(hidden + rows), rtol=0, atol=1e-14)


def test_no_class_adds_zero_and_trains_no_row():
    embedding = ConditioningEmbedding(8, 12, num_classes=3, null_condition=True)
    plain = ConditioningEmbedding(8, 12)
    plain.load_state_dict({k: v for k, v in embedding.state_dict().items() if not k.startswith("class_table")})
    labels = torch.tensor([3.0, 4.0])
    out = embedding(labels, torch.tensor([-1, -1]), 2)
    assert torch.equal(out, plain(labels, None, 2))
    out.sum().backward()
    assert torch.count_nonzero(embedding.class_table.weight.grad) == 0


def refusal(call):
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_of_dimensions_and_shapes():
    t = torch.zeros(3)
    assert refusal(lambda: sinusoidal_embedding(t, 7)) == "embedding dim must be even and at least 4, got 7; use 8"
    assert refusal(lambda: sinusoidal_embedding(t, 2)) == "embedding dim must be even and at least 4, got 2; use 4"
    assert sinusoidal_embedding(t, 2, cos_first=True).shape == (3, 2)
    assert refusal(lambda: FourierEmbedding(5)) == "embedding dim must be even and at least 2, got 5; use 6"
    assert refusal(lambda: sinusoidal_embedding(t[:, None], 8)) == (
        "t must have shape [3], got [3, 1]; pass t.flatten()"
    )
    assert refusal(lambda: FourierEmbedding(4)(t[:, None])) == "c must have shape [3], got [3, 1]; pass c.flatten()"
    assert refusal(lambda: ConditioningEmbedding(8, 8, kind="learned")) == (
        "embedding must be one of sin_first, cos_first, fourier, got 'learned'"
    )
    assert refusal(lambda: ConditioningEmbedding(8, 8, num_classes=0)) == (
        "num_classes must be at least 1, got 0; pass None for no classes"
    )


def test_refusals_of_labels():
    t = torch.zeros(2)
    plain, classes = ConditioningEmbedding(8, 8), ConditioningEmbedding(8, 8, num_classes=10)
    ok = torch.tensor([0, 9])
    assert refusal(lambda: plain(t[:, None], None, 2)) == (
        "c_noise must have shape [2], got [2, 1]; pass c_noise.flatten()"
    )
    assert refusal(lambda: plain(t, None, 4)) == (
        "c_noise must have shape [4], got [2]; pass one c_noise for each sample"
    )
    assert refusal(lambda: plain(t, ok, 2)) == (
        "cond must be None: the network has no classes; build it with num_classes=..."
    )
    assert refusal(lambda: classes(t, None, 2)) == (
        "cond must be int64 labels of shape [2], got None; pass one a sample, 0 .. 9"
    )
    assert refusal(lambda: classes(t, ok[:1], 2)) == "cond must have shape [2], got [1]; pass one cond for each sample"
    assert refusal(lambda: classes(t, ok.float(), 2)) == "cond must be int64, got torch.float32; pass cond.long()"
    for labels, span in (([0, 10], "0 .. 10"), ([-2, 3], "-2 .. 3")):
        assert refusal(lambda labels=labels: classes(t, torch.tensor(labels), 2)) == (
            f"cond must be in 0 .. 9, got {span}; build the network with more num_classes"
        )


def test_no_class_is_refused_by_a_network_that_was_not_trained_without():
    t, cond = torch.zeros(2), torch.tensor([4, -1])
    trained = ConditioningEmbedding(8, 8, num_classes=10, null_condition=True)
    without = ConditioningEmbedding(8, 8, num_classes=10)
    without.load_state_dict(trained.state_dict())
    assert refusal(lambda: without(t, cond, 2)) == (
        "cond must be in 0 .. 9, got -1: this network never saw samples without a class, as it was not trained with "
        "its class dropped now and then (null_condition); pass a class"
    )
    assert torch.equal(without(t, cond.abs(), 2), trained(t, cond.abs(), 2))
    assert refusal(lambda: trained(t, None, 2)) == (
        "cond must be int64 labels of shape [2], got None; pass one a sample, 0 .. 9, or -1 for no class"
    )
    assert refusal(lambda: trained(t, cond - 1, 2)) == (
        "cond must be in 0 .. 9, or -1 for no class, got -2 .. 3; build the network with more num_classes"
    )
