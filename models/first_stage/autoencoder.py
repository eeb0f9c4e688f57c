"""The convolutional autoencoder of latent diffusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..backbones.blocks.checks import check_input, check_positive
from ..backbones.blocks.initialization import initialize
from ..backbones.blocks.layers import AttentionBlock, NormFactory, ResBlock
from ..backbones.blocks.levels import Level
from ..backbones.blocks.normalization import group_norm
from ..backbones.blocks.resampling import Downsample, Upsample
from ..backbones.blocks.resolutions import ImageSize, level_sizes, level_widths
from .bottlenecks import make_bottleneck
from .pixels import outputs_of_pixels


class Blocks(Level):
    """Blocks in turn, without an embedding.

    Args:
        blocks: The blocks.
    """

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them to features, [B, C, H, W]."""
        for block in self.blocks:
            x = self._run(block, x)
        return x


@dataclass(frozen=True)
class _BlockMaker:
    """Makes the levels of both networks.

    Attributes:
        widths: Channels of each level.
        attends: Whether each level attends.
        dropout: Probability inside the residual blocks.
        norm: Makes the normalization of a number of channels.
    """

    widths: Sequence[int]
    attends: Sequence[bool]
    dropout: float
    norm: NormFactory

    def level(self, before: int, i: int, count: int, resample: nn.Module | None) -> Blocks:
        """Level ``i``: ``count`` residual blocks, the first of which takes ``before`` channels, and a resampling."""
        blocks: list[nn.Module] = []
        for j in range(count):
            blocks.append(self._residual(before if j == 0 else self.widths[i], self.widths[i]))
            if self.attends[i]:
                blocks.append(AttentionBlock(self.widths[i], norm=self.norm))
        return Blocks(*blocks, *([] if resample is None else [resample]))

    def down(self, count: int) -> list[Blocks]:
        """All levels, each of which halves the resolution but for the last."""
        widths, last = self.widths, len(self.widths) - 1
        return [
            self.level(widths[max(i - 1, 0)], i, count, Downsample(width) if i < last else None)
            for i, width in enumerate(widths)
        ]

    def up(self, count: int) -> list[Blocks]:
        """All levels from the last on, each of which doubles the resolution but for the first."""
        widths, last = self.widths, len(self.widths) - 1
        return [
            self.level(widths[min(i + 1, last)], i, count, Upsample(widths[i]) if i > 0 else None)
            for i in range(last, -1, -1)
        ]

    def middle(self) -> Blocks:
        """Residual block, attention, residual block, of the last level's channels."""
        width = self.widths[-1]
        first, second = self._residual(width, width), self._residual(width, width)
        return Blocks(first, AttentionBlock(width, norm=self.norm), second)

    def _residual(self, before: int, width: int) -> ResBlock:
        return ResBlock(before, width, None, dropout=self.dropout, norm=self.norm)


def _check_smaller(latent_shape: Sequence[int], image_shape: Sequence[int]) -> None:
    """Refuse a latent of more numbers than the image.

    Raises:
        ValueError: In one line.
    """
    given, latent = math.prod(image_shape), math.prod(latent_shape)
    if latent > given:
        raise ValueError(
            f"a latent must not be larger than the image, of {given} numbers, got {latent}; lower latent_channels, "
            "or add a level to channel_mult"
        )


class Autoencoder(Backbone):
    """Encoder and decoder in the layout that latent diffusion shares (Rombach et al. 2022; Esser et al. 2021).

    Encoder: a convolution, levels of residual blocks that halve the resolution, a middle with attention, norm, SiLU, a
    convolution to the latent's channels. Decoder: the same in reverse, with one block more a level. The latent has the
    resolution of the last level. ``latent_convs`` are 1x1 convolutions on both sides of the bottleneck, as Stable
    Diffusion's autoencoder has them and its successors do not.

    With ``channels=128, channel_mult=(1, 2, 4, 4), bottleneck="diagonal", pixels="gaussian"`` it has the 83,653,863
    parameters of Stable Diffusion's, and a scale for each channel of the data.

    Args:
        image_size: Height and width, one number or ``(H, W)``, divisible by ``2^(levels - 1)``.
        in_channels: Channels of the data, ``C``.
        latent_channels: Channels of the latent, ``c``.
        channels: Width that ``channel_mult`` multiplies.
        channel_mult: Width of each level over ``channels``; one entry a level.
        num_res_blocks: Residual blocks a level of the encoder; the decoder has one more.
        attention_resolutions: Resolutions with attention after every residual block.
        dropout: Probability inside the residual blocks, in [0, 1).
        norm_groups: Groups of the norms.
        norm_eps: Epsilon of the group norms.
        latent_convs: Have the 1x1 convolutions.
        bottleneck: "fixed": noise of ``log_snr``; "diagonal": noise that the encoder says; "fsq": codes of
            ``latent_levels`` levels; "vq": vectors of a codebook.
        log_snr: log 1 / r^2 of the fixed noise r.
        latent_levels: Levels of each number of the codes.
        codebook_size: Vectors of the codebook.
        pixels: Distribution of the data that the decoder says: "gaussian", with a learned scale for each channel, or
            "levels".
        num_levels: Number of grey levels, for "levels".

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        latent_channels: int = 4,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        latent_convs: bool = True,
        bottleneck: Literal["fixed", "diagonal", "fsq", "vq"] = "fixed",
        log_snr: float = 4.0,
        latent_levels: int = 5,
        codebook_size: int = 512,
        pixels: Literal["gaussian", "levels"] = "gaussian",
        num_levels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, latent_channels=latent_channels, num_res_blocks=num_res_blocks)
        self.in_channels, self.pixels = in_channels, pixels
        widths, self.sizes = level_widths(channels, channel_mult), level_sizes(image_size, len(channel_mult))
        self.latent_shape = (latent_channels, *self.sizes[-1])
        _check_smaller(self.latent_shape, (in_channels, *self.sizes[0]))
        self.bottleneck = make_bottleneck(
            bottleneck,
            log_snr=log_snr,
            latent_levels=latent_levels,
            codebook_size=codebook_size,
            latent_channels=latent_channels,
        )
        at_bottleneck = latent_channels * self.bottleneck.outputs_per_channel

        def norm(width: int) -> nn.GroupNorm:
            return group_norm(width, norm_eps, max_groups=norm_groups)

        attends = [min(size) in attention_resolutions for size in self.sizes]
        make = _BlockMaker(widths, attends, dropout, norm)
        down, up = make.down(num_res_blocks), make.up(num_res_blocks + 1)
        outputs = in_channels * outputs_of_pixels(pixels, num_levels)
        self.encoder = nn.Sequential(
            initialize(nn.Conv2d(in_channels, widths[0], 3, padding=1)),
            *down,
            make.middle(),
            norm(widths[-1]),
            nn.SiLU(),
            initialize(nn.Conv2d(widths[-1], at_bottleneck, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            initialize(nn.Conv2d(latent_channels, widths[-1], 3, padding=1)),
            make.middle(),
            *up,
            norm(widths[0]),
            nn.SiLU(),
            initialize(nn.Conv2d(widths[0], outputs, 3, padding=1)),
        )
        self.to_latent = initialize(nn.Conv2d(at_bottleneck, at_bottleneck, 1)) if latent_convs else nn.Identity()
        self.from_latent = initialize(nn.Conv2d(latent_channels, latent_channels, 1)) if latent_convs else nn.Identity()
        # of standard deviation 1 at first: half of the range of images
        self.pixel_log_std = nn.Parameter(torch.zeros(in_channels)) if pixels == "gaussian" else None

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        """Encode, draw z, decode.

        Args:
            x: Data, [B, C, H, W].
            eps: Standard normal noise, [B, *latent_shape].

        Returns:
            The tensors of the latent, and the decoder's output; see ``decode``.

        Raises:
            ValueError: A shape or dtype is not what the network was built for.
        """
        latent = self.encode(x)
        tensors = (getattr(latent, field.name) for field in fields(latent))
        return *tensors, self._decode(latent.draw(eps.to(latent.mean.dtype)))

    def encode(self, x: Tensor) -> Any:
        """q(z | x) of data [B, C, H, W]."""
        first: Any = self.encoder[0]
        check_input(x, (self.in_channels, *self.sizes[0]), first.weight)
        return self.bottleneck(self.to_latent(self.encoder(x)).to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """The raw distribution of pixels given latents [B, *latent_shape]; see ``read_pixels``.

        With a codebook, the nearest vectors are taken of any latents.
        """
        first: Any = self.decoder[0]
        check_input(z, self.latent_shape, first.weight)
        return self._decode(self.bottleneck.decodable(z))

    def _decode(self, z: Tensor) -> Tensor:
        raw = self.decoder(self.from_latent(z)).to(z.dtype)
        if self.pixel_log_std is None:
            return raw
        return torch.cat((raw, self.pixel_log_std.view(1, -1, 1, 1).expand_as(raw).to(raw.dtype)), dim=1)

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``Level``."""
        return self.stages[0].gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for one in self.stages:
            one.gradient_checkpointing = on

    @property
    def stages(self) -> list[Level]:
        """The levels in the order in which they are applied."""
        return [one for one in (*self.encoder, *self.decoder) if isinstance(one, Level)]
