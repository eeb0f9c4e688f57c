"""The diffusion transformer of clips: attention within each frame, then over the frames."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks.checks import check_choice, check_input, check_positive
from .blocks.condition_input import absent_samples
from .blocks.dit_block import SelfAttention, scaled_and_shifted
from .blocks.embedding import EmbeddingKind, sinusoidal_embedding
from .blocks.initialization import initialize
from .blocks.levels import Level
from .blocks.patches import from_patches, rotations
from .blocks.resolutions import ImageSize
from .dit import DiT, Positions

TemporalReach = Literal["place", "planes"]
# axes of [B, F, H, W, C] that attention leaves apart
_APART = {"place": (2, 3), "column": (3,), "row": (2,)}


class TemporalBlock(Level):
    """``x + g attend(norm(x) (1 + scale) + shift + when)`` over the frames, at each place, column or row by itself.

    ``[shift, scale, g] = modulate(e)`` starts at zero, so that the block starts as the identity. Over a column or a row
    queries and keys are turned by frame and place, as by rotary positions.

    Args:
        channels: Number of channels, ``C``, also of the embedding.
        num_frames: F.
        grid: Patches of a frame, ``(H, W)``.
        within: "place", attention over F patches; "column", over the F H of one column; "row", over the F W of one row.
        num_heads: Number of heads, which divides ``C``.
        qk_norm: See ``SelfAttention``.
        norm_eps: Epsilon of the norm.

    Source: Ho et al. 2022 (video diffusion), Section 3; Ma et al. 2024 (Latte), Section 3.2; of rows and columns, Ho et
    al. 2019 (axial attention).
    """

    rotation: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        num_frames: int,
        grid: tuple[int, int],
        within: Literal["place", "column", "row"],
        num_heads: int,
        qk_norm: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.channels, self.norm_eps, self.grid, self.apart = channels, norm_eps, grid, _APART[within]
        self.attention = SelfAttention(channels, num_heads=num_heads, qk_norm=qk_norm)
        self.modulate = initialize(nn.Linear(channels, 3 * channels), zero=True)
        length = {"place": None, "column": grid[0], "row": grid[1]}[within]
        turns = None if length is None else rotations(num_frames, length, channels // num_heads)
        self.register_buffer("rotation", turns, persistent=False)

    def forward(self, x: Tensor, embedding: Tensor, when: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Patches of the frames of one clip after another, [B F, H W, C].
            embedding: Activated embedding of each frame, [B F, C].
            when: Times of the frames, [F, C].

        Returns:
            [B F, H W, C].
        """
        return self._run(self._apply_parts, x, embedding, when)

    def _apply_parts(self, x: Tensor, embedding: Tensor, when: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(embedding).chunk(3, dim=1)
        seen = scaled_and_shifted(F.layer_norm(x, (self.channels,), eps=self.norm_eps), scale, shift)
        clips = (seen.unflatten(0, (-1, len(when))) + when[:, None].to(seen.dtype)).unflatten(2, self.grid)
        first = tuple(range(1, 1 + len(self.apart)))
        # of a column: [B, F, H, W, C] -> [B, W, F, H, C], attended to as [B W, F H, C]
        lines = clips.movedim(self.apart, first)
        count = 1 + len(first)
        attended = self.attention(lines.flatten(0, count - 1).flatten(1, -2), None, self.rotation)
        back = attended.reshape(lines.shape).movedim(first, self.apart)
        return x + gate.unsqueeze(1) * back.flatten(2, 3).flatten(0, 1)


class SpaceTimeDiT(DiT):
    """A ``DiT`` of clips: each of its blocks sees the patches of one frame, ``TemporalBlock`` after it the frames.

    What moves is at other places in other frames. With ``temporal_reach="planes"`` two ``TemporalBlock`` follow: a
    patch sees all frames along its column, then along its row. Any displacement is one along each.

    All but the temporal blocks has the names, shapes and meaning of the image network. With the weights of one, and
    temporal gates of zero as a new network has them, the answer is that network's for each frame by itself.

    Frames that are given lie before the others, clean, with a learned vector added to their patches that tells them
    from noisy ones. They take part in all attention, and are left out of the answer: where frames are given, the
    network is one of the density of the rest.

    Args:
        image_size: Height and width of a frame; see ``DiT``.
        num_frames: Frames of noisy data, ``F``.
        given_frames: Frames that are given, ``f``, of ``in_channels`` channels; 0 for none.
        in_channels: See ``DiT``, as what follows.
        patch_size: Side of a patch.
        channels: Features of a patch.
        depth: Number of blocks, each with its temporal blocks.
        num_heads: Heads of every attention.
        mlp_ratio: Width of the layers between over ``channels``.
        positions: Where a patch is in its frame.
        qk_norm: Normalize queries and keys.
        temporal_reach: Attention over the frames: "place", at one place; or "planes", within a column, then a row.
        learned_variance: Return ``2 C`` channels.
        num_classes: Number of classes, or None.
        null_condition: Take no condition too: label -1, and NaN for values and frames.
        cond_values: Values that are a condition; 0 for none.
        norm_eps: Epsilon of the norms.
        embedding: Embedding of the noise label.
        embedding_dim: Features of the noise embedding.
        outputs_per_channel: Outputs for each channel of the data.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.
    """

    when: Tensor

    def __init__(
        self,
        *,
        image_size: ImageSize,
        num_frames: int,
        given_frames: int = 0,
        in_channels: int = 3,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        qk_norm: bool = False,
        temporal_reach: TemporalReach = "place",
        learned_variance: bool = False,
        num_classes: int | None = None,
        null_condition: bool = False,
        cond_values: int = 0,
        norm_eps: float = 1e-6,
        embedding: EmbeddingKind = "cos_first",
        embedding_dim: int = 256,
        outputs_per_channel: int = 1,
    ) -> None:
        check_positive(num_frames=num_frames)
        check_choice("temporal_reach", temporal_reach, get_args(TemporalReach))
        of_clips = ("num_frames", "given_frames", "temporal_reach")
        super().__init__(**{name: value for name, value in self.options.items() if name not in of_clips})
        self.num_frames, self.given_frames = num_frames, given_frames
        self._add_temporal(temporal_reach)
        if given_frames:
            self.given = nn.Parameter(torch.zeros(channels))
            self.not_given = nn.Parameter(torch.zeros(channels))

    def _add_temporal(self, reach: TemporalReach) -> None:
        """Make the temporal blocks, after all else: the weights before them are those of a new image network."""
        options = self.options
        # 0 is the first frame that is not given
        places = torch.arange(-self.given_frames, self.num_frames, dtype=torch.float64)
        self.register_buffer("when", sinusoidal_embedding(places, options["channels"]), persistent=False)
        shared = {name: options[name] for name in ("channels", "num_heads", "qk_norm", "norm_eps")}
        within = ("place",) if reach == "place" else ("column", "row")
        self.temporal = nn.ModuleList(
            TemporalBlock(num_frames=len(places), grid=self.grid, within=one, **shared)
            for _ in self.blocks
            for one in within
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        c_noise: Tensor,
        cond: Tensor | None = None,
        *,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, C, F, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_condition``; None without classes.
            image: Frames before those of ``x``, in [-1, 1], [B, C, f, H, W]; NaN throughout is none.
            image_log_snr: Of no effect: frames that are given are clean.
            values: Condition of ``cond_values`` values, of order 1, [B, cond_values]; NaN is none.

        Returns:
            The prediction, [B, C, F, H, W], or [B, 2 C, F, H, W] with ``learned_variance``, in the dtype of ``x``.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        check_input(x, (self.in_channels, self.num_frames, *self.size), self.patches.weight)
        given, markers = self._read_given(x, image)
        every = len(self.when)
        frames = torch.cat((given, x), 2).movedim(2, 1).flatten(0, 1)
        # a row a frame also where all frames of a clip have the same: the image network's bits stay as they are
        labels, numbers = (None if one is None else _each(one, every) for one in (cond, values))
        told = self.condition_input.to_embedding(len(frames), None, numbers)
        embedding = self.embed(_each(c_noise, every), labels, len(frames), told)
        sequence = self._place_patches(frames, None)
        if markers is not None:
            sequence = sequence + markers.to(sequence.dtype)
        each = len(self.temporal) // len(self.blocks)
        for number, block in enumerate(self.blocks):
            sequence = block(sequence, embedding, None, self.rotation)
            for temporal in self.temporal[number * each : (number + 1) * each]:
                sequence = temporal(sequence, embedding, self.when)
        if self.given_frames:
            sequence, embedding = (
                one.unflatten(0, (-1, every))[:, self.given_frames :].flatten(0, 1) for one in (sequence, embedding)
            )
        answer = from_patches(self.last(sequence, embedding), self.size, self.options["patch_size"]).to(x.dtype)
        return answer.unflatten(0, (-1, self.num_frames)).movedim(1, 2)

    def _read_given(self, x: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The frames that are given, 0 where there are none, and what is added to the patches of each, [B F, 1, C]."""
        expected = (len(x), self.in_channels, self.given_frames, *self.size)
        if image is None and not self.given_frames:
            return x[:, :, :0], None
        if image is None or tuple(image.shape) != expected:
            wanted, got = (list(expected) if self.given_frames else None), image if image is None else list(image.shape)
            raise ValueError(
                f"the condition's image, frames before the clip, must have shape {wanted}, got {got}; pass "
                "Condition(image=...), or build the network with as many given_frames"
            )
        absent = absent_samples("image", image, null_condition=self.null_condition)
        marker = torch.where(absent[:, None], self.not_given, self.given)[:, None]
        markers = torch.cat(
            (
                marker.expand(-1, self.given_frames, -1),
                marker.new_zeros(1, 1, 1).expand(len(x), self.num_frames, marker.shape[2]),
            ),
            1,
        )
        return torch.where(absent.view(-1, 1, 1, 1, 1), 0.0, image).to(x.dtype), markers.flatten(0, 1)[:, None]


def _each(one: Tensor, frames: int) -> Tensor:
    """A row a sample as a row a frame."""
    return one.repeat_interleave(frames, 0)
