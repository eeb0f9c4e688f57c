"""Settings of diffusers' ``ControlNetModel``, and the network that a ControlNet must be of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...backbones import ADM, height_and_width
from ..diffusers.conditional import plan_conditional_unet
from ..shared.plan import default_options
from ..shared.settings import Settings

_OF_HINTS = (
    "conditioning_channels", "conditioning_embedding_out_channels", "controlnet_conditioning_channel_order",
    "global_pool_conditions",
)  # fmt: skip
# of the way up, of training, and of parts that such a network does not have
_OF_NO_EFFECT = {
    "dropout", "learned_variance", "max_words", "middle_attention_norm", "null_condition", "outputs_per_channel",
    "up_attention_resolutions", "word_features", "word_layers",
}  # fmt: skip
# what a file of tensors alone does not say, but its shapes do, or else the network that it is given for
_OF_THE_BASE = (
    "image_size", "in_channels", "channels", "channel_mult", "num_res_blocks", "cross_attention_resolutions",
    "transformer_depth", "cond_tokens", "num_heads", "head_channels", "norm_groups",
)  # fmt: skip
_SETTINGS = {
    "channels": "block_out_channels", "channel_mult": "block_out_channels", "num_res_blocks": "layers_per_block",
    "cross_attention_resolutions": "down_block_types", "transformer_depth": "transformer_layers_per_block",
    "cond_tokens": "cross_attention_dim", "num_heads": "attention_head_dim", "head_channels": "attention_head_dim",
    "norm_groups": "norm_num_groups", "scale_shift_norm": "resnet_time_scale_shift",
    "symmetric_downsample": "downsample_padding", "embedding": "freq_shift",
}  # fmt: skip


class HintPlan(NamedTuple):
    """The hint of a ControlNet.

    Attributes:
        channels: Its channels.
        widths: See ``HintStem``.
        bgr: The network was trained with its channels in reverse.
    """

    channels: int = 3
    widths: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False


def plan_control(said: Mapping[str, Any], base: ADM, *, path: Path) -> HintPlan:
    """The hint of a ``ControlNetModel``, whose other settings must be those of a network.

    Args:
        said: What its ``config.json`` holds.
        base: The network.
        path: That file, for the message.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, not supported, or of another network.
    """
    of_hints = Settings({name: said[name] for name in _OF_HINTS if name in said})
    of_hints.refuse_unless(global_pool_conditions=False)
    order = of_hints.choice("controlnet_conditioning_channel_order", "rgb", ("rgb", "bgr"))
    plan = HintPlan(
        of_hints.integer("conditioning_channels", 3),
        of_hints.integers("conditioning_embedding_out_channels", (16, 32, 96, 256)),
        order == "bgr",
    )
    values = {name: value for name, value in said.items() if name not in _OF_HINTS and not name.startswith("_")}
    # its settings are those of a UNet2DConditionModel, but for those of the way up and of the size
    size = base.options["image_size"]
    values |= {"sample_size": size if isinstance(size, int) else list(height_and_width(size))}
    values |= {"out_channels": values.get("in_channels", 4)}
    if "down_block_types" in values:
        down = Settings(values).words("down_block_types", [])
        values["up_block_types"] = [name.replace("Down", "Up") for name in reversed(down)]
    _, network = plan_conditional_unet(Settings(values))
    check_base(base, network, path=path)
    return plan


def check_base(base: ADM, network: Mapping[str, Any] | None = None, *, path: Path) -> None:
    """Refuse a network that a ControlNet is not of.

    Args:
        base: The network.
        network: Options of ``ADM`` for the one that it is of, those left out being its defaults; None of a file that
            does not say them, which is of Stable Diffusion.
        path: The file that says so, for the message.

    Raises:
        ValueError: In one line: it is no network of Stable Diffusion's kind, or its options are others.
    """
    if not isinstance(base, ADM) or not base.settings["transformer_depth"]:
        raise ValueError(
            f"the base of {path} must be Stable Diffusion's U-Net, an ADM with transformer_depth, got "
            f"{type(base).__name__}; pass from_stable_diffusion(...).prior.backbone"
        )
    if network is None:
        network = {name: base.settings[name] for name in _OF_THE_BASE} | {
            "attention_resolutions": (), "middle_attention": False, "scale_shift_norm": False,
            "resampling": "convolution", "embedding": "cos_first",
        }  # fmt: skip
    expected, found = {**default_options("adm"), **network}, base.settings
    for name, value in expected.items():
        if name not in _OF_NO_EFFECT and _plain(value) != _plain(found[name]):
            setting = f" (its {_SETTINGS[name]})" if name in _SETTINGS else ""
            raise ValueError(
                f"the base of {path} must have {name}={_plain(value)!r}{setting}, got {_plain(found[name])!r}; pass "
                "the U-Net that it was trained for"
            )


def _plain(value: Any) -> Any:
    """The same, with a tuple for a list."""
    return tuple(value) if isinstance(value, list) else value
