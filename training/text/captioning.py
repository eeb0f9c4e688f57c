"""Training of a captioner on images with captions that are true, of which there may be few."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data import NO_WORD, DataError, ImageDataset, Vocabulary, longest
from models.text.captioner import Captioner

_FEWEST = 8
_NOISE = 0.05  # standard deviation of the noise of training images, at most: faint edges tell a size


def train_captioner(
    clean: ImageDataset,
    noisy: ImageDataset | None = None,
    *,
    seed: int = 0,
    num_steps: int = 1500,
    batch_size: int = 64,
    features: int = 64,
    augment: bool = True,
) -> Captioner:
    """Train a ``Captioner`` by the mean of -log p(caption | image), with AdamW whose learning rate rises and falls.

    Images are moved by up to one pixel to either side, what is beyond the edge repeated, and have noise of a standard
    deviation of up to 0.05 added: captions stay true. They are neither flipped nor recoloured, of which captions tell.

    The same weights for the same seed, on one machine with one number of threads. PyTorch's global generator is left
    as it was.

    Args:
        clean: Images with captions, in words of which the captioner learns all; see ``captioned_as``.
        noisy: Images whose captions may be wrong, half of each batch, from which it learns what to look at. It is told
            which is which; see ``Captioner``. Words that no clean caption has are left out.
        seed: Seed of the initial weights, the batches, the changes of images and dropout.
        num_steps: Steps of training.
        batch_size: Images a step, drawn with replacement.
        features: See ``Captioner``.
        augment: Move images and add noise.

    Returns:
        The captioner in evaluation mode.

    Raises:
        DataError: If there are less than 8 clean captions, or one has no word, or no noisy one has a word of theirs.
    """
    if clean.captions is None:
        raise DataError(f"{clean.name} has no captions, which a captioner is trained on; name a file of clean ones")
    if len(clean) < _FEWEST:
        raise DataError(f"a captioner is trained on at least {_FEWEST} captions, got {len(clean)}; write more")
    vocabulary, max_words = Vocabulary.of(clean.captions), longest(clean.captions)
    vocabulary.check(clean.captions)
    sources = [_in_words(one, vocabulary, max_words) for one in (clean, noisy) if one is not None]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw initial weights and dropout from the global one
        torch.random.manual_seed(seed)
        captioner = Captioner(clean.image_shape, vocabulary, max_words=max_words, features=features)
        optimizer = torch.optim.AdamW(captioner.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps, pct_start=0.15)
        for _ in tqdm(range(num_steps), desc="captioner", unit="step"):
            drawn = [_draw(one, batch_size // len(sources), generator) for one in sources]
            x0, words = (torch.cat(parts) for parts in zip(*drawn, strict=True))
            is_noisy = torch.arange(len(x0)) >= len(drawn[0][0])
            optimizer.zero_grad(set_to_none=True)
            images = _changed(x0, generator) if augment else x0
            (-captioner.log_prob(images, words, is_noisy).mean()).backward()
            torch.nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return captioner.eval().requires_grad_(False)


def _in_words(dataset: ImageDataset, vocabulary: Vocabulary, max_words: int) -> tuple[ImageDataset, Tensor, Tensor]:
    """A data set, its captions in numbers, and the rows of those that have a known word."""
    words = vocabulary.numbers(dataset.captions or (), max_words)
    told = (words[:, 0] != NO_WORD).nonzero().flatten()
    if not len(told):
        raise DataError(f"no caption of {dataset.name} has a word of the clean ones; take clean ones of its words")
    return dataset, words, told


def _draw(source: tuple[ImageDataset, Tensor, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some images in [-1, 1], drawn with replacement, and the words of their captions."""
    dataset, words, told = source
    chosen = told[torch.randint(len(told), (count,), generator=generator)]
    return dataset.space.encode(dataset.images[chosen]), words[chosen]


def _changed(x0: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Images moved by -1 .. 1 pixels down and to the right, with noise."""
    n, channels, height, width = x0.shape
    padded = F.pad(x0, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(0, 3, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    samples, depth = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    moved = padded[samples, depth, rows[:, None, :, None], columns[:, None, None, :]]
    std = _NOISE * torch.rand(n, 1, 1, 1, generator=generator)
    return moved + std * torch.randn(moved.shape, generator=generator)
