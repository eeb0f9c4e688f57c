"""Parts of NCSN++: its residual block, which may resample, and the embedding of noise, class and augmentation."""

import math
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .classes import check_classes, look_up_classes
from .embedding import FourierEmbedding, sinusoidal_embedding
from .initialization import initialize
from .layers import NormFactory

NoiseEmbedding = Literal["sin_first", "fourier"]


class RescaledResBlock(nn.Module):
    """Residual block ``s (skip(r(x)) + conv2(dropout(SiLU(norm2(conv1(r(SiLU(norm1(x)))) + project(e))))))``.

    ``r`` is the resampling, or nothing; ``s`` is 1/sqrt(2) with ``rescale``, so that the variance does not grow from
    block to block, else 1; ``e`` is the embedding. ``conv2`` starts at zero.

    Args:
        in_channels: Channels in, ``C``.
        out_channels: Channels out, ``D``.
        embedding_dim: Features of the embedding, ``E``.
        norm: Builds the normalization of a number of channels.
        dropout: Probability, in [0, 1).
        rescale: Divide by sqrt(2).
        resample: Applied to both branches, for one object has no parameters; ``skip`` is then always a convolution.

    Raises:
        ValueError: ``dropout`` is outside [0, 1).

    Source: Song et al. 2021, Appendix H.2 (after Brock et al. 2019, BigGAN; Karras et al. 2020, StyleGAN2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        *,
        norm: NormFactory,
        dropout: float = 0.0,
        rescale: bool = True,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.resample = resample
        self.scale = math.sqrt(0.5) if rescale else None
        self.norm1 = norm(in_channels)
        self.conv1 = initialize(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.project = initialize(nn.Linear(embedding_dim, out_channels))
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = initialize(nn.Conv2d(out_channels, out_channels, 3, padding=1), zero=True)
        same = in_channels == out_channels and resample is None
        self.skip = nn.Identity() if same else initialize(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E].

        Returns:
            Features, [B, D, H', W'], resampled if the block resamples.
        """
        hidden = F.silu(self.norm1(x))
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = self.conv1(hidden) + self.project(embedding)[:, :, None, None]
        hidden = self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return hidden if self.scale is None else hidden * self.scale


class NoiseLabelEmbedding(nn.Module):
    """``SiLU(linear2(SiLU(linear1(features + class_map(sqrt(n) onehot(cond)) + augment_map(augment)))))``.

    The class is added to the features of the noise before the two linear layers, as EDM does, not after them as
    ``ConditioningEmbedding`` does. ``sqrt(n)``, with ``n`` classes, makes up for the one-hot vector's small variance.
    With ``null_class`` the label -1 is no class: zeros in place of the one-hot vector. No augmentation is zeros too.

    Args:
        features: Features of the noise embedding, even.
        out_dim: Features of the result, ``E``.
        kind: ``sin_first`` (Ho et al. 2020), or ``fourier`` (for the logarithm of sigma).
        num_classes: Number of classes, ``n``, or None.
        null_class: Take the label -1 too.
        augment_dim: Numbers that say how an image was augmented, ``A``; 0 for none.

    Raises:
        ValueError: A number is impossible, or ``kind`` is unknown.

    Source: Song et al. 2021, Appendix H.2; Karras et al. 2022, Appendix F (classes and augmentation).
    """

    def __init__(
        self,
        features: int,
        out_dim: int,
        *,
        kind: NoiseEmbedding = "sin_first",
        num_classes: int | None = None,
        null_class: bool = False,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        if kind not in get_args(NoiseEmbedding):
            raise ValueError(f"embedding must be one of {', '.join(get_args(NoiseEmbedding))}, got {kind!r}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}; pass None for no classes")
        if augment_dim < 0:
            raise ValueError(f"augment_dim must be at least 0, got {augment_dim}; pass 0 for no augmentation")
        smallest = 4 if kind == "sin_first" else 2
        if features % 2 or features < smallest:
            raise ValueError(
                f"the noise embedding needs an even number of features, at least {smallest}, got {features}"
            )
        self.features, self.num_classes, self.null_class = features, num_classes, null_class
        self.augment_dim = augment_dim
        self.fourier = FourierEmbedding(features) if kind == "fourier" else None
        self.class_map = None if num_classes is None else initialize(nn.Linear(num_classes, features))
        self.augment_map = initialize(nn.Linear(augment_dim, features, bias=False)) if augment_dim else None
        self.linear1 = initialize(nn.Linear(features, out_dim))
        self.linear2 = initialize(nn.Linear(out_dim, out_dim))

    def forward(self, c_noise: Tensor, cond: Tensor | None, augment: Tensor | None, batch_size: int) -> Tensor:
        """Embed noise labels, classes and augmentations.

        Args:
            c_noise: Noise labels, [B].
            cond: Class labels, int64 [B] in 0 .. n - 1, -1 too with ``null_class``; None without classes.
            augment: Augmentation labels, [B, A], or None for none.
            batch_size: ``B``, that of the data these labels go with.

        Returns:
            The activated embedding, [B, E].

        Raises:
            ValueError: A shape or type is wrong, labels are missing, unexpected or (on the CPU) out of range.
        """
        if c_noise.shape != (batch_size,):
            raise ValueError(f"c_noise must have shape [{batch_size}], got {list(c_noise.shape)}; one for each sample")
        dtype = self.linear1.weight.dtype
        if self.fourier is not None:
            features = self.fourier(c_noise, dtype=dtype)
        else:
            features = sinusoidal_embedding(c_noise, self.features, dtype=dtype)
        classes = self._embed_classes(cond, batch_size)
        augmentation = self._embed_augmentation(augment, features)
        for more in (classes, augmentation):
            features = features if more is None else features + more
        return F.silu(self.linear2(F.silu(self.linear1(features))))

    def _embed_classes(self, cond: Tensor | None, batch_size: int) -> Tensor | None:
        check_classes(cond, batch_size, num_classes=self.num_classes, null_class=self.null_class)
        if self.class_map is None or cond is None:
            return None
        rows = look_up_classes(self.class_map.weight.t(), cond, null_class=self.null_class)
        return rows * math.sqrt(self.class_map.in_features) + self.class_map.bias

    def _embed_augmentation(self, augment: Tensor | None, features: Tensor) -> Tensor | None:
        if self.augment_map is None:
            if augment is not None:
                raise ValueError("augment must be None: the network has no such labels; build it with augment_dim=...")
            return None
        expected = (features.shape[0], self.augment_dim)
        if augment is None:  # zeros rather than nothing, so that every parameter has a gradient
            augment = features.new_zeros(expected)
        if augment.shape != expected:
            raise ValueError(f"augment must have shape {list(expected)}, got {list(augment.shape)}; one row a sample")
        return self.augment_map(augment.to(features.dtype))
