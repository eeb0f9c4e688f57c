"""Checkpoints of score_sde_pytorch (Song et al. 2021): NCSN++, DDPM++ and its DDPM, for VP, sub-VP and VE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from runtime.registry import choices_message

from ...parameterization import TimeInput
from ..shared.plan import ModelPlan, PlannedModel
from ..shared.settings import Config, Settings
from ..shared.tensors import as_tensors, read_checkpoint, strip_prefix
from .configs import CONFIGS
from .layout import find_options, score_sde_sources

Weights = Literal["ema", "raw"]

_FREQUENCIES = re.compile(r"all_modules\.\d+\.W")
# what is read of the sections besides model
_READ = (
    "data.centered", "data.image_size", "data.num_channels", "reflow.reflow_t_schedule", "reflow.reflow_type",
    "training.continuous", "training.sde",
)  # fmt: skip
# Settings of the project's configs that neither the tensors nor the network's output depend on: some are of training,
# some of SDEs that the config does not choose, and model.interpolation is of its NCSN
_IDLE = (
    "model.ema_rate", "model.fourier_scale", "model.init_scale", "model.interpolation", "model.resamp_with_conv",
    "model.sigma_begin",
)  # fmt: skip
# what only an ncsnpp looks at, though a ddpm's config may say it too
_OF_NCSNPP = (
    "model.conv_size", "model.embedding_type", "model.fir", "model.fir_kernel", "model.progressive",
    "model.progressive_combine", "model.progressive_input", "model.resblock_type", "model.skip_rescale",
)  # fmt: skip


def _read_config(config: Config) -> Settings:
    """Settings under dotted names, such as ``model.fir``."""
    if isinstance(config, str) and not config.strip().startswith("--") and not Path(config).exists():
        # as the project's own command line has it
        name = config.removeprefix("configs/").removesuffix(".py")
        if name not in CONFIGS and not Path(name).suffix:
            raise ValueError(choices_message("config of score_sde_pytorch", name, sorted(CONFIGS)))
        config = CONFIGS.get(name, config)
    flat: dict[str, Any] = {}
    for name, value in Settings(config).values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return Settings({name: value for name, value in flat.items() if name.startswith("model.") or name in _READ})


def _plan_network(settings: Settings, found: dict[str, Any], attends: list[bool]) -> dict[str, Any]:
    network = settings.choice("model.name", None, ("ncsnpp", "ddpm"))
    image_size = settings.integer("data.image_size")
    if image_size % 2 ** (len(attends) - 1):
        raise ValueError(
            f"config's data.image_size {image_size} cannot be halved {len(attends) - 1} times, as the checkpoint does; "
            "correct it"
        )
    by_size = {image_size // 2**i: attend for i, attend in enumerate(attends)}
    settings.agree("data.num_channels", found["in_channels"])
    settings.agree("model.nf", found["channels"])
    settings.agree("model.ch_mult", found["channel_mult"])
    settings.agree("model.num_res_blocks", found["num_res_blocks"])
    settings.refuse_unless(**{"model.conditional": True, "model.nonlinearity": "swish"})
    settings.refuse_unless(**{"model.normalization": "GroupNorm", "model.attention_type": "ddpm"})
    if found["block"] == "ddpm":
        settings.agree("model.resamp_with_conv", found["resample_conv"])
    plan = {
        **found,
        "image_size": image_size,
        "attention_resolutions": settings.attention("model.attn_resolutions", by_size),
        "dropout": settings.number("model.dropout", 0.0),
    }
    if network == "ddpm":
        settings.ignore(_OF_NCSNPP)
        plain = {"fir_kernel": None, "input_pyramid": "none", "output_pyramid": "none"}
        return plan | plain | {"rescale": False, "min_group_channels": 1}
    skip = {"none": "none", "residual": "residual", "skip": "input_skip"}[found["input_pyramid"]]
    settings.agree("model.progressive_input", skip)
    settings.agree("model.progressive", "output_skip" if found["output_pyramid"] == "skip" else "none")
    settings.agree("model.resblock_type", found["block"])
    settings.agree("model.embedding_type", "fourier" if found["embedding"] == "fourier" else "positional")
    settings.refuse_unless(**{"model.progressive_combine": "sum", "model.conv_size": 3})
    kernel = settings.numbers("model.fir_kernel", (1, 3, 3, 1))
    return plan | {
        "fir_kernel": kernel if settings.flag("model.fir") else None,
        "rescale": settings.flag("model.skip_rescale"),
    }


def _noise_levels(settings: Settings, sigmas: Tensor | None) -> tuple[int, float, float]:
    """Number of noise levels, sigma_min and sigma_max: as the config says, and as the buffer ``sigmas`` does."""
    found = (1000, 0.01, 50.0) if sigmas is None else (len(sigmas), float(sigmas[-1]), float(sigmas[0]))
    number = settings.integer("model.num_scales", found[0], least=2)
    low, high = settings.number("model.sigma_min", found[1]), settings.number("model.sigma_max", found[2])
    pairs = zip((number, low, high), found, strict=True)
    if sigmas is not None and not all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs):
        raise ValueError(
            f"config says {number} noise levels from {low:g} to {high:g}, but the checkpoint has {found[0]} from "
            f"{found[1]:g} to {found[2]:g}; correct model.num_scales, sigma_min and sigma_max"
        )
    return number, low, high


def _plan_time(settings: Settings, embedding: str, sigmas: Tensor | None) -> tuple[dict[str, Any], str, TimeInput]:
    """The SDE, the parameterization and the time input."""
    sde = settings.choice("training.sde", None, ("vpsde", "subvpsde", "vesde", "rectified_flow"))
    # sub-VP has no discrete form: the project's own score function takes it as continuous whatever is said
    continuous = settings.flag("training.continuous") or sde == "subvpsde"
    exploding = sde == "vesde"
    num_scales, *ends = _noise_levels(settings, sigmas)
    if sde == "rectified_flow":
        return _plan_flow(settings, embedding)
    centered = settings.flag("data.centered", not exploding)
    if settings.flag("model.scale_by_sigma", exploding) != exploding:
        raise ValueError(f"config's model.scale_by_sigma must be {exploding} with {sde}; correct one of them")
    if not centered and not exploding:
        raise ValueError(f"config's data.centered must be True with {sde}, whose data are in [-1, 1]; correct it")
    takes_sigma = exploding and continuous
    if (embedding == "fourier") != takes_sigma and (takes_sigma or settings.take("model.name") != "ddpm"):
        kinds = {True: "Fourier", False: "positional"}
        raise ValueError(
            f"{'continuous' if continuous else 'discrete'} {sde} needs a {kinds[takes_sigma]} embedding of the noise, "
            f"but the checkpoint has a {kinds[embedding == 'fourier']} one; correct training.sde or training.continuous"
        )
    beta_min, beta_max = settings.number("model.beta_min", 0.1), settings.number("model.beta_max", 20.0)
    if not exploding and not continuous:
        table = {"num_steps": num_scales, "beta_start": beta_min / num_scales, "beta_end": beta_max / num_scales}
        return {"name": "ddpm", **table}, "eps", "index"
    if not exploding:
        return {"name": sde.removesuffix("sde"), "beta_min": beta_min, "beta_max": beta_max}, "eps", "t999"
    # data in [0, 1] become data in [-1, 1] by 2 x - 1, which doubles their noise
    scale = 1.0 if centered else 2.0
    levels = {"sigma_min": scale * ends[0], "sigma_max": scale * ends[1]}
    if continuous:
        return {"name": "ve", **levels}, "score", "log_sigma" if centered else "log_half_sigma"
    return {"name": "ncsn", "num_steps": num_scales, **levels}, "score", "reversed_index"


def _plan_flow(settings: Settings, embedding: str) -> tuple[dict[str, Any], str, TimeInput]:
    """The same of RectifiedFlow: x = t x0 + (1 - t) z, a network of 999 t, and x0 - z as its output."""
    settings.refuse_unless(**{"data.centered": True, "model.scale_by_sigma": False, "training.continuous": False})
    settings.ignore(("model.beta_min", "model.beta_max"))
    if embedding == "fourier":
        raise ValueError(
            "rectified_flow needs a positional embedding of time, but the checkpoint has a Fourier one; correct "
            "training.sde"
        )
    return {"name": "rectified_flow"}, "velocity_to_data", "reversed_t999"


def _flow_answers(settings: Settings) -> str:
    """The answer of a network of RectifiedFlow: a flow, of those that were trained on pairs of another one."""
    kind = settings.choice("reflow.reflow_type", "none", ("none", "train_reflow"))
    if kind == "none":
        return "posterior_mean"
    # those of other schedules are distilled to the times of some steps
    settings.refuse_unless(**{"reflow.reflow_t_schedule": "uniform"})
    return "flow"


def plan_score_sde(tensors: Mapping[str, Tensor], config: Config, *, path: Path) -> ModelPlan:
    """Plan a model from the tensors and settings of score_sde_pytorch.

    Args:
        tensors: The network's state dict, without prefix.
        config: See ``from_score_sde``.
        path: The file, for messages.

    Raises:
        ValueError: In one line: a setting is missing, unknown, or contradicts the tensors.
    """
    settings = _read_config(config)
    try:
        found, attends = find_options(tensors, path=path)
        network = _plan_network(settings, found, attends)
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"checkpoint {path} has tensors of shapes that no ncsnpp or ddpm has; fetch it again"
        ) from error
    sde, parameterization, time_input = _plan_time(settings, found["embedding"], tensors.get("sigmas"))
    answers = _flow_answers(settings) if sde["name"] == "rectified_flow" else "posterior_mean"
    settings.ignore(_IDLE)
    settings.finish()
    return ModelPlan("ncsnpp", network, sde, parameterization, time_input, answers)


def _pick_weights(checkpoint: Any, weights: Weights, *, path: Path) -> dict[str, Tensor]:
    if weights not in ("ema", "raw"):
        raise ValueError(choices_message("weights", weights, ["ema", "raw"]))
    if not isinstance(checkpoint, Mapping) or "model" not in checkpoint:
        return strip_prefix(as_tensors(checkpoint, path=path))
    raw = strip_prefix(as_tensors(checkpoint["model"], path=path, what="entry 'model' of checkpoint"))
    if weights == "raw":
        return raw
    if not isinstance(checkpoint.get("ema"), Mapping) or "shadow_params" not in checkpoint["ema"]:
        raise ValueError(f"checkpoint {path} has no averaged weights under ema.shadow_params; import weights='raw'")
    shadow = checkpoint["ema"]["shadow_params"]
    # a bare list in the order of the trained parameters: no buffers, no frequencies
    trained = [name for name in raw if name != "sigmas" and not _FREQUENCIES.fullmatch(name)]
    if len(shadow) != len(trained):
        raise ValueError(
            f"checkpoint {path} has {len(shadow)} averaged tensors for {len(trained)} trained ones; take weights='raw'"
        )
    return raw | dict(zip(trained, shadow, strict=True))


def from_score_sde(path: Path | str, config: Config, *, weights: Weights = "ema") -> PlannedModel:
    """Read a network of score_sde_pytorch.

    The network's structure is read off its tensors, and its noise levels off the buffer ``sigmas``. They do not say
    ``data.image_size``, ``model.name``, ``training.sde``, ``training.continuous``, nor, of an ``ncsnpp``, ``model.fir``
    and ``model.skip_rescale``: the config must. It may say the rest too, and is then compared; ``model.dropout`` is
    0, ``model.beta_min`` and ``beta_max`` 0.1 and 20 where it does not.

    The published VE models are of data in [0, 1] and noise sigma; here the data are 2 x - 1 and the noise 2 sigma, so
    that a score here is half of theirs.

    The checkpoints of RectifiedFlow (Liu et al. 2023) have this layout too, and the SDE "rectified_flow". Time runs
    from noise to data there, from data to noise here. A network that was trained on pairs of another (reflow) answers
    a flow, which its config says, and no tensor.

    Args:
        path: A checkpoint of the training loop (``optimizer``, ``model``, ``ema``, ``step``), or a state dict.
        config: The project's config: a mapping, or the path of a JSON file, with the sections ``data``, ``model`` and
            ``training``; flags such as ``--model.fir True``; or the name of a published one such as
            "vp/cifar10_ddpmpp_continuous".
        weights: "ema" for the averaged weights, with which the project samples; "raw" for the others. A state dict
            holds one kind, and is taken as it is.

    Returns:
        The model, in evaluation mode, of data in [-1, 1].

    Raises:
        ValueError: In one line: the file or the config cannot be read, they contradict each other, or tensors are
            missing, unexpected, or of another shape or kind.
    """
    path = Path(path)
    tensors = _pick_weights(read_checkpoint(path), weights, path=path)
    trained = {name: tensor for name, tensor in tensors.items() if name != "sigmas"}
    return plan_score_sde(tensors, config, path=path).load(trained, score_sde_sources, path=path)
