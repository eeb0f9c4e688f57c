"""Training of a contrastive pair of images and captions."""

from __future__ import annotations

import torch
from tqdm import tqdm

from data import DataError, ImageDataset, Vocabulary, longest
from models.backbones import WordEncoder
from models.contrastive import ContrastivePair, ImageEncoder


def train_pair(
    train: ImageDataset, *, features: int = 64, seed: int = 0, num_steps: int = 1500, batch_size: int = 128
) -> ContrastivePair:
    """Train a ``ContrastivePair`` by AdamW with a learning rate that rises and falls.

    The same weights for the same seed, on one machine with one number of threads. PyTorch's global generator is left
    as it was.

    Args:
        train: Images with captions, in words of which the pair learns all.
        features: D, numbers of a vector.
        seed: Seed of the initial weights and the batches.
        num_steps: Steps of training.
        batch_size: Pairs a step, each of which is told from the others, at least 2.

    Returns:
        The pair in evaluation mode.

    Raises:
        DataError: If the images have no captions, or a caption has no word.
    """
    if train.captions is None:
        raise DataError(f"{train.name} has no captions, which the pair is trained on; take scenes")
    if not 2 <= batch_size <= len(train):
        raise ValueError(f"batch_size must be 2 .. {len(train)}, the number of images, got {batch_size}; change it")
    vocabulary, max_words = Vocabulary.of(train.captions), longest(train.captions)
    vocabulary.check(train.captions)
    words, x0 = vocabulary.numbers(train.captions, max_words), train.space.encode(train.images)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw initial weights from the global generator
        torch.random.manual_seed(seed)
        pair = ContrastivePair(
            ImageEncoder(train.image_shape),
            WordEncoder(num_words=len(vocabulary.words), features=64, max_words=max_words, num_layers=1),
            vocabulary,
            features=features,
        )
    optimizer = torch.optim.AdamW(pair.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for _ in tqdm(range(num_steps), desc="contrastive pair", unit="step"):
        chosen = torch.randperm(len(x0), generator=generator)[:batch_size]
        optimizer.zero_grad(set_to_none=True)
        pair.loss(x0[chosen], words[chosen]).backward()
        optimizer.step()
        schedule.step()
        pair.clamp_scale()
    return pair.eval().requires_grad_(False)
