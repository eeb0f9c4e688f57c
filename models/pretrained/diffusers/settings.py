"""Settings of diffusers' U-Nets and of its schedulers, as their JSON files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch

from runtime.registry import choices_message

from ...backbones import level_resolutions
from ..shared.plan import ModelPlan, check_betas, plan_network, scaled_linear
from ..shared.settings import Config, Settings
from .conditional import CONDITIONAL, image_size_of, plan_conditional_unet

SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "PNDMScheduler",
    "ScoreSdeVeScheduler",
)  # fmt: skip
# what a training script's average of the weights writes into its network's config
_OF_AVERAGES = (
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
)  # fmt: skip
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

# each block type: whether it attends, and by what it resamples; None is what downsample_type or upsample_type says
_DOWN: dict[str, tuple[bool, str | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "SkipDownBlock2D": (False, "skip"),
    "AttnSkipDownBlock2D": (True, "skip"),
}
_UP = {name.replace("Down", "Up"): value for name, value in _DOWN.items()}


def plan_diffusers(unet: Mapping[str, Any], scheduler: Config) -> ModelPlan:
    """Plan a model from the settings of a pipeline.

    Args:
        unet: What ``unet/config.json`` holds, of a ``UNet2DConditionModel`` if it says so; settings that are left out
            have the defaults of the class.
        scheduler: What ``scheduler/scheduler_config.json`` holds, the path of such a file, or flags, of which all must
            be known.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a model that is not supported.
    """
    of_unet = Settings({name: value for name, value in unet.items() if not name.startswith("_")})
    of_unet.ignore(_OF_AVERAGES)
    settings = Settings(scheduler)
    kind = settings.choice("_class_name", "DDPMScheduler", SCHEDULERS)
    embedding = of_unet.choice("time_embedding_type", "positional", ("positional", "fourier"))
    expected = "fourier" if kind == "ScoreSdeVeScheduler" else "positional"
    if embedding != expected:
        raise ValueError(
            f"a {kind} goes with time_embedding_type={expected} of UNet2DModel, got {embedding}; one of them is wrong"
        )
    if unet.get("_class_name") != CONDITIONAL:
        backbone, network = _plan_unet(of_unet, fourier=embedding == "fourier")
    elif embedding == "positional":
        backbone, network = plan_conditional_unet(of_unet)
    else:
        raise ValueError(f"a {CONDITIONAL} goes with a scheduler of betas, got {kind}; one of them is wrong")
    learned = network.get("learned_variance", False)
    if kind == "ScoreSdeVeScheduler":
        if learned:
            raise ValueError("a ScoreSdeVeScheduler takes one output a channel, got two; such a model is not supported")
        # networks of the VE-SDE divide by sigma, and are told ln(sigma) of data in [0, 1], twice which is ours
        low, high = settings.number("sigma_min", 0.01), settings.number("sigma_max", 1348.0)
        sde = {"name": "ve", "sigma_min": 2 * low, "sigma_max": 2 * high}
        plan = ModelPlan(backbone, network, sde, parameterization="score", time_input="log_half_sigma")
    else:
        prediction = settings.choice("prediction_type", "epsilon", tuple(PREDICTIONS))
        variance = settings.take("variance_type", "fixed_small")
        if kind.startswith("DDPM") and (variance == "learned" or (variance == "learned_range") != learned):
            raise ValueError(
                f"the scheduler's variance_type={variance!r} contradicts {1 + learned} outputs a channel; "
                f"it must be {'learned_range' if learned else 'a fixed one, such as fixed_small'}"
            )
        sde = plan_sde(settings)
        plan = ModelPlan(backbone, network, sde, parameterization=PREDICTIONS[prediction], time_input="index")
    if isinstance(scheduler, str) and scheduler.strip().startswith("--"):
        settings.finish()
    return plan


def halves_are_swapped(unet: Mapping[str, Any]) -> bool:
    """True if the halves of the noise embedding are in the other order than ours with the same frequencies."""
    if unet.get("time_embedding_type", "positional") != "positional":
        return False
    return bool(unet.get("flip_sin_to_cos", True)) != (unet.get("freq_shift", 0) == 0)


def _plan_unet(settings: Settings, *, fourier: bool) -> tuple[str, dict[str, Any]]:
    """The backbone and its options."""
    widths = settings.integers("block_out_channels", (224, 448, 672, 896))
    image_size = image_size_of(settings)
    resampling, down, up = _plan_levels(settings, len(widths))
    sizes = level_resolutions(image_size, len(widths))
    settings.refuse_unless(
        act_fn=("silu", "swish"),
        center_input_sample=fourier,
        class_embed_type=None,
        mid_block_type="UNetMidBlock2D",
        time_embedding_dim=(None, 4 * widths[0]),
    )
    network = {
        "image_size": image_size,
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        "num_res_blocks": settings.integer("layers_per_block", 2),
        "attention_resolutions": tuple(compress(sizes, down)),
        "dropout": settings.number("dropout", 0.0),
        "norm_eps": settings.number("norm_eps", 1e-5),
    }
    if resampling == "skip":
        backbone, network = "ncsnpp", network | _skip_options(settings, widths, down, up, fourier=fourier)
    else:
        network |= _adm_options(settings)
        network["resampling"] = "residual" if resampling == "resnet" else "convolution"
        if up != down:
            network["up_attention_resolutions"] = tuple(compress(sizes, up))
        if fourier:
            network |= {"embedding": "fourier", "embedding_dim": 2 * widths[0]}
        backbone, network = plan_network(network)
    settings.flag("flip_sin_to_cos", True)
    settings.ignore(["num_train_timesteps"])  # of learned embeddings of time alone
    settings.finish()
    return backbone, network


def _adm_options(settings: Settings) -> dict[str, Any]:
    in_channels = settings.integer("in_channels", 3)
    out_channels = settings.integer("out_channels", 3)
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"UNet2DModel must have as many out_channels as in_channels={in_channels}, or twice as many with a learned "
            f"variance, got {out_channels}; only such models are supported"
        )
    scale_shift = settings.choice("resnet_time_scale_shift", "default", ("default", "scale_shift")) == "scale_shift"
    groups = settings.integer("norm_num_groups", 32)
    head_channels, num_classes = settings.take("attention_head_dim", 8), settings.take("num_class_embeds")
    settings.refuse_unless(
        attn_norm_num_groups=(None, groups), downsample_padding=(0, 1), freq_shift=(0, 1), mid_block_scale_factor=1
    )
    return {
        "in_channels": in_channels,
        "num_heads": 1,
        "head_channels": None if head_channels is None else settings.integer("attention_head_dim", 8),
        "scale_shift_norm": scale_shift,
        "symmetric_downsample": settings.integer("downsample_padding", 1) == 1,
        "middle_attention": settings.flag("add_attention", True),
        "middle_attention_norm": settings.take("attn_norm_num_groups") is not None or not scale_shift,
        "learned_variance": out_channels == 2 * in_channels,
        "num_classes": None if num_classes is None else settings.integer("num_class_embeds"),
        "norm_groups": groups,
        "embedding": "cos_first" if settings.integer("freq_shift", 0) == 0 else "sin_first",
    }


def _skip_options(
    settings: Settings, widths: Sequence[int], down: Sequence[bool], up: Sequence[bool], *, fourier: bool
) -> dict[str, Any]:
    """The options of ``NCSNpp`` that skip blocks stand for.

    diffusers builds such a network for some widths alone. A norm of C channels has min(C / 4, 32) groups; but that of
    attention has 32, and so has, nearly always, that of what comes in from below and beside where the way up attends.
    """
    if up != down or not fourier:
        raise ValueError(
            "UNet2DModel of skip blocks must attend at the same levels down and up, and go with a ScoreSdeVeScheduler; "
            "others are unsupported"
        )
    beside = [(*widths[1:], widths[-1]), widths, (widths[0], *widths[:-1])]
    normalized = {*widths, *(sum(pair) for others in beside for pair in zip(widths, others, strict=True))}
    uneven = [width for width in normalized if width < 4 or width % min(width // 4, 32)]
    attending = set(compress(widths, down))
    if uneven or min(attending, default=128) < 128 or any(width % widths[0] for width in widths):
        raise ValueError(
            "UNet2DModel of skip blocks must have widths that are multiples of the first, from 128 on where they "
            "attend, and that min(width / 4, 32) divides, alone and added to their neighbours, got "
            f"{[*widths]}; others are unsupported"
        )
    scale = settings.number("mid_block_scale_factor", 1.0)
    if abs(scale - 2**0.5) > 1e-6:
        raise ValueError(f"UNet2DModel of skip blocks must have mid_block_scale_factor=sqrt(2), got {scale}")
    attending.add(widths[-1])
    settings.refuse_unless(
        add_attention=True,
        attention_head_dim=(None, *attending) if len(attending) == 1 else None,
        attn_norm_num_groups=(None, 32) if widths[-1] >= 128 else None,
        in_channels=3,
        norm_num_groups=(None, 32) if min(widths[0], widths[-1]) >= 128 else None,
        num_class_embeds=None,
        out_channels=3,
        resnet_time_scale_shift="default",
    )
    settings.ignore(("downsample_padding", "freq_shift"))
    return {"input_pyramid": "skip", "output_pyramid": "skip", "embedding": "fourier"}


def _plan_levels(settings: Settings, num_levels: int) -> tuple[str, list[bool], list[bool]]:
    """By what the levels resample, and which of them attend, down and up, from the highest resolution on."""
    down = settings.words("down_block_types", ["DownBlock2D", *["AttnDownBlock2D"] * 3])
    up = settings.words("up_block_types", [*["AttnUpBlock2D"] * 3, "UpBlock2D"])[::-1]
    attends, kinds = [], set()
    # the lowest level has nothing that leads further down, and the highest nothing that leads further up
    sides = (("downsample_type", down, _DOWN, down[:-1]), ("upsample_type", up, _UP, up[1:]))
    for name, types, table, resampling in sides:
        fallback = settings.choice(name, "conv", ("conv", "resnet"))
        if len(types) != num_levels:
            raise ValueError(f"UNet2DModel must have a block type for each of {num_levels} levels, got {list(types)}")
        for block_type in types:
            if block_type not in table:
                raise ValueError(choices_message("block type of UNet2DModel", block_type, sorted(table)))
        attends.append([table[block_type][0] for block_type in types])
        skips = any("Skip" in block_type for block_type in types)
        kinds |= {table[block_type][1] or fallback for block_type in (types if skips else resampling)}
    if len(kinds) > 1:
        raise ValueError(
            "UNet2DModel must resample alike at every level, by convolutions or by residual blocks, or be of skip "
            f"blocks alone, got {down} and {up[::-1]}; such a mixture is not supported"
        )
    return kinds.pop() if kinds else "conv", attends[0], attends[1]


def plan_sde(settings: Settings) -> dict[str, Any]:
    """The options of the SDE of a scheduler of betas.

    Raises:
        ValueError: In one line: a setting is impossible, or not supported.
    """
    if settings.flag("rescale_betas_zero_snr", False):
        raise ValueError(
            "the scheduler's rescale_betas_zero_snr=True leaves no signal at the last step, whose log-SNR is infinite; "
            "such a model is not supported"
        )
    steps = settings.integer("num_train_timesteps", 1000, least=2)
    start, end = settings.number("beta_start", 1e-4), settings.number("beta_end", 0.02)
    if settings.take("trained_betas") is not None:
        betas = settings.numbers("trained_betas")
        if len(betas) != steps:
            raise ValueError(
                f"the scheduler's trained_betas must be num_train_timesteps={steps} numbers, got {len(betas)}"
            )
        return {"name": "betas", "betas": [float(beta) for beta in betas]}
    schedule = settings.choice("beta_schedule", "linear", ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    if schedule == "linear":
        return {"name": "ddpm", "num_steps": steps, "beta_start": start, "beta_end": end}
    if schedule == "squaredcos_cap_v2":
        return {"name": "improved_ddpm", "num_steps": steps}
    if schedule == "scaled_linear":
        return scaled_linear(start, end, steps)
    check_betas(start, end)
    betas = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
    return {"name": "betas", "betas": betas.tolist()}
