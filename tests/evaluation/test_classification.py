"""Posterior probabilities, their calibration, and the worth of a label, against algebra."""

import math

import numpy as np
import pytest
import torch

from evaluation.classification import (
    calibration_error,
    class_log_probs,
    classification_report,
    fit_temperature,
    label_worth,
)


def drawn(num_images=4000, num_classes=10, sharpness=2.0):
    """Nats, and labels that are drawn from the probabilities that they give."""
    generator = torch.Generator().manual_seed(3)
    nats = sharpness * torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64) + 100
    return nats, torch.multinomial(class_log_probs(nats).exp(), 1, generator=generator)[:, 0]


def test_a_label_is_worth_log_classes_at_most():
    """mixture - own = log2(C p(label | x)) / D <= log2(C) / D, 0.0519 bits/dim of ten classes of 64 pixels."""
    nats, labels = drawn()
    report, values = label_worth(nats.numpy(), labels.numpy(), 64)
    assert report["label_worth_at_most"] == pytest.approx(0.0519, abs=5e-5)
    assert values["label_worth"].max() <= report["label_worth_at_most"] + 1e-12
    cross_entropy = classification_report(nats.numpy(), labels.numpy())["cross_entropy"]
    assert report["label_worth"] == pytest.approx((math.log2(10) - cross_entropy) / 64, abs=1e-12)
    assert report["given_label"] == pytest.approx(float(nats.gather(1, labels[:, None]).mean()) / 64 / math.log(2))
    assert report["mixture"] - report["given_label"] == pytest.approx(report["label_worth"], abs=1e-12)


def test_differences_have_paired_standard_errors():
    nats, labels = drawn()
    null = 0.3 * 64 * math.log(2) - (-nats).logsumexp(1).numpy() + math.log(10)  # 0.3 bits/dim above the mixture
    report, _ = label_worth(nats.numpy(), labels.numpy(), 64, null)
    assert report["without_label_less_mixture"] == pytest.approx(0.3, abs=1e-12)
    assert report["without_label_less_mixture_stderr"] < 1e-12 < report["without_label_stderr"]


def test_a_temperature_undoes_what_makes_probabilities_too_sure():
    nats, labels = drawn()
    assert fit_temperature(nats, labels) == pytest.approx(1, abs=0.1)
    found = fit_temperature(3 * nats, labels)
    assert found == pytest.approx(3, rel=0.1)
    # the slope of the cross-entropy in 1 / T is 0 there
    probs = class_log_probs(3 * nats, found).exp()
    assert float((probs * nats).sum(1).mean()) == pytest.approx(float(nats.gather(1, labels[:, None]).mean()), abs=1e-6)
    report = classification_report(3 * nats.numpy(), labels.numpy())
    good = classification_report(nats.numpy(), labels.numpy())
    assert report["accuracy"] == good["accuracy"] and report["cross_entropy"] > 1.2 * good["cross_entropy"]
    assert report["tempered"]["cross_entropy"] == pytest.approx(good["cross_entropy"], rel=0.01)
    assert good["calibration_error"] < 0.03 < 0.1 < report["calibration_error"]
    assert fit_temperature(torch.tensor([[0.0, 9.0]] * 5), torch.zeros(5, dtype=torch.int64)) == pytest.approx(1)


def test_calibration_error_is_the_distance_of_confidence_and_accuracy():
    log_probs = torch.tensor([[0.75, 0.25]] * 100, dtype=torch.float64).log()
    for right in (75, 50, 100):
        labels = (torch.arange(100) >= right).long()
        assert calibration_error(log_probs, labels) == pytest.approx(abs(right / 100 - 0.75), abs=1e-12)


def test_confusions_are_counted_by_true_class_then_by_chosen_one():
    nats = 5.0 * (1 - np.eye(3)[[0, 0, 1, 2, 1]])
    report = classification_report(nats, np.array([0, 1, 1, 2, 2]))
    assert report["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert report["accuracy"] == pytest.approx(0.6) and report["accuracy_stderr"] == pytest.approx(math.sqrt(0.06))
