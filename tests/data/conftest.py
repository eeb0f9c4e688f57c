import contextlib
from pathlib import Path

import pytest
import torch

from data import DataError, ImageDataset


@pytest.fixture
def refuses():
    """A context that demands a DataError of one line with a cause, a fix and the given words."""

    @contextlib.contextmanager
    def expect(*words):
        with pytest.raises(DataError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        assert ";" in message, f"no fix in: {message}"
        for word in words:
            assert str(word) in message

    return expect


@pytest.fixture
def make_dataset():
    """Image i has the label i and is recognizable by its pixels."""

    def make(count, *, shape=(1, 2, 3)):
        size = shape[0] * shape[1] * shape[2]
        images = torch.arange(count * size).remainder(251).to(torch.uint8).reshape(count, *shape)
        return ImageDataset(images, torch.arange(count), 256, count, "toy", "train")

    return make


@pytest.fixture
def real_data():
    """Real data beside the checkout, for whoever has it; the core tests do without."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "mnist").is_dir():
        pytest.skip("no real data in ../shared/data beside the checkout")
    return folder
