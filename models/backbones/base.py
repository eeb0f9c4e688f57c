"""Common to the backbones: their options as given; and of those of images, their shape and their levels."""

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .blocks.checks import check_input, check_positive
from .blocks.condition_input import ConditionInput
from .blocks.fir import Direction
from .blocks.layers import ResBlock
from .blocks.levels import Level, MiddleLevel
from .blocks.resolutions import height_and_width, level_sizes, level_widths, one_or_pair


class Backbone(nn.Module):
    """A network that keeps the options that it was built with.

    Attributes:
        options: The constructor's arguments by name, with the defaults of those left out:
            ``type(network)(**network.options)`` is such a network with new weights. Within the constructor of a base
            they are those of the base.
        num_classes: Number of classes, or None.
    """

    options: dict[str, Any]
    num_classes: int | None = None

    @property
    def null_condition(self) -> bool:
        """True if it is trained to answer without its condition too."""
        return bool(self.options.get("null_condition", False))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _keep_options(cls.__init__)


def _keep_options(construct: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(construct)
    names = list(signature.parameters)[1:]

    @functools.wraps(construct)
    def wrapped(self: Backbone, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = {**dict(zip(names, given.args[1:], strict=False)), **given.kwargs}
        self.options = options
        construct(self, *args, **kwargs)
        self.options = options

    return wrapped


class ImageBackbone(Backbone):
    """A network whose levels halve the resolution of images one after the other, and perhaps double it again.

    Attributes:
        image_size: Height and width, one number or ``(H, W)``.
        in_channels: Channels of the data, ``C``.
        num_res_blocks: Residual blocks a level on the way down.
        widths: Channels of each level.
        sizes: Height and width of each level.
        down: The levels on the way down.
        middle: The level between.
        up: The levels on the way up, that of the highest resolution first; none in a classifier.
    """

    down: nn.ModuleList
    middle: Level
    up: nn.ModuleList
    conv_in: nn.Conv2d

    def _set_shape(self) -> None:
        """Check the options that all of them have, and set what follows from them."""
        options = self.options
        names = ("in_channels", "channels", "num_res_blocks", "outputs_per_channel", "min_group_channels")
        check_positive(**{name: options[name] for name in names if name in options})
        self.widths = level_widths(options["channels"], options["channel_mult"])
        self.sizes = level_sizes(options["image_size"], len(self.widths))
        self.image_size = one_or_pair(*height_and_width(options["image_size"]))
        self.in_channels: int = options["in_channels"]
        self.num_res_blocks: int = options["num_res_blocks"]
        self.num_classes = options["num_classes"]
        self._attends(options["attention_resolutions"])

    def _attends(self, attention_resolutions: Sequence[int], name: str = "attention_resolutions") -> list[bool]:
        """Tell for each level whether it attends; a level's resolution is its shorter side."""
        resolutions = [min(size) for size in self.sizes]
        unknown = [str(resolution) for resolution in attention_resolutions if resolution not in resolutions]
        if unknown:
            raise ValueError(
                f"{name} must be among {', '.join(map(str, resolutions))}, got {', '.join(unknown)}; "
                "pass () for attention in the middle only"
            )
        return [resolution in attention_resolutions for resolution in resolutions]

    @abstractmethod
    def _res_block(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        """A residual block."""

    @abstractmethod
    def _level(self, side: Direction, i: int, blocks: list[ResBlock], *, attend: bool) -> Level:
        """Level ``i`` on the way down or up, of residual blocks."""

    def _build_down(self, first: int, attends: Sequence[bool]) -> nn.ModuleList:
        """The levels on the way down, after a convolution to ``first`` channels."""
        levels = nn.ModuleList()
        for i, (before, width) in enumerate(zip((first, *self.widths), self.widths, strict=False)):
            blocks = [self._res_block(width if j else before, width) for j in range(self.num_res_blocks)]
            levels.append(self._level("down", i, blocks, attend=attends[i]))
        return levels

    def _build_middle(self, attention: Callable[[int], nn.Module | None]) -> MiddleLevel:
        """The level between, with the attention that is built for its channels."""
        width = self.widths[-1]
        return MiddleLevel(self._res_block(width, width), attention(width), self._res_block(width, width))

    def _build_up(self, first: int, attends: Sequence[bool]) -> nn.ModuleList:
        """The levels on the way up: one block more than down, each of which takes in one result of the way down."""
        # those of the first convolution, then of each level's blocks and its resampling; the last level has none
        skips = [first, *(width for width in self.widths for _ in range(self.num_res_blocks + 1))][:-1]
        levels: list[Level] = []
        below = self.widths[-1]
        for i, width in reversed(list(enumerate(self.widths))):
            blocks = []
            for _ in range(self.num_res_blocks + 1):
                blocks.append(self._res_block(below + skips.pop(), width))
                below = width
            levels.append(self._level("up", i, blocks, attend=attends[i]))
        return nn.ModuleList(reversed(levels))

    @property
    def _pooled_features(self) -> int:
        """Features of the vector of a whole text: those of a word where these are learned."""
        options = self.options
        return options["word_features"] if options.get("cond_words") else options.get("cond_pooled", 0)

    def _condition_input(self, first: int) -> ConditionInput:
        """The input of images, values and pooled vectors; to be made late, so that it moves no weight before it."""
        return ConditionInput(
            channels=self.options["cond_channels"],
            num_values=self.options["cond_values"],
            pooled_features=self._pooled_features,
            hidden_channels=first,
            embedding_dim=4 * self.options["channels"],
            null_condition=self.null_condition,
        )

    def _check_input(self, x: Tensor) -> None:
        check_input(x, (self.in_channels, *self.sizes[0]), self.conv_in.weight)

    @property
    def stages(self) -> list[Level]:
        """The levels in the order in which they are applied: down, middle, up."""
        return [level for level in (*self.down, self.middle, *reversed(self.up)) if isinstance(level, Level)]

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``Level``."""
        return self.middle.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for level in self.stages:
            level.gradient_checkpointing = on
