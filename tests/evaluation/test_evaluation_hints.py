"""The F1 of edges against its definition, by precision and recall."""

import pytest
import torch

from evaluation.hints import edge_f1


def test_it_is_the_harmonic_mean_of_precision_and_recall():
    generator = torch.Generator().manual_seed(0)
    found, asked = (torch.randint(2, (20, 1, 5, 7), generator=generator, dtype=torch.uint8) for _ in range(2))
    both = (found & asked).flatten(1).sum(1).double()
    precision, recall = both / found.flatten(1).sum(1), both / asked.flatten(1).sum(1)
    expected = 2 * precision * recall / (precision + recall)
    torch.testing.assert_close(edge_f1(found, asked), expected, rtol=0, atol=1e-12)


def test_the_same_edges_and_no_edges_at_all_are_1_and_edges_in_place_of_none_are_0():
    none, some = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    assert [float(edge_f1(*pair)) for pair in ((some, some), (none, none), (some, none), (none, some))] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="edges must be of one shape"):
        edge_f1(none, some[:, :, :2])
