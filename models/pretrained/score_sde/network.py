"""Checkpoints of score_sde_pytorch (Song et al. 2021): NCSN++, DDPM++ and its DDPM, for VP, sub-VP and VE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from runtime.registry import choices_message

from ...backbones import NCSNpp
from ...parameterization import TimeInput
from ..shared.plan import ModelPlan, PlannedModel
from ..shared.renaming import load_renamed
from ..shared.settings import Settings, read_json
from ..shared.tensors import as_tensors, read_checkpoint, strip_prefix
from .configs import CONFIGS
from .layout import find_options, score_sde_sources

Weights = Literal["ema", "raw"]
Config = Mapping[str, Any] | Path | str

_FREQUENCIES = re.compile(r"all_modules\.\d+\.W")
_SECTIONS = ("data", "model", "training", "optim", "sampling", "eval")
# Settings of the project's configs that neither the tensors nor the network's output depend on: some are of training,
# some of SDEs that the config does not choose, and model.interpolation is of its NCSN
_IDLE = (
    "model.ema_rate", "model.fourier_scale", "model.init_scale", "model.interpolation", "model.num_scales",
    "model.sigma_begin", "model.sigma_min", "model.sigma_max", "model.beta_min", "model.beta_max",
)  # fmt: skip
# what only an ncsnpp looks at, though a ddpm's config may say it too
_OF_NCSNPP = (
    "model.conv_size", "model.embedding_type", "model.fir", "model.fir_kernel", "model.progressive",
    "model.progressive_combine", "model.progressive_input", "model.resblock_type", "model.skip_rescale",
)  # fmt: skip


def _read_config(config: Config) -> Settings:
    """Settings under dotted names, such as ``model.fir``."""
    if isinstance(config, str) and not Path(config).exists():
        # as the project's own command line has it
        config = config.removeprefix("configs/").removesuffix(".py")
    if isinstance(config, str) and config in CONFIGS:
        return Settings(CONFIGS[config])
    if isinstance(config, str) and not config.strip().startswith("--"):
        path = Path(config)
        if not path.suffix and not path.exists():
            raise ValueError(choices_message("config of score_sde_pytorch", config, sorted(CONFIGS)))
        config = path
    if isinstance(config, Path):
        config = read_json(config, "config")
    if isinstance(config, str):
        return Settings(config)
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in _SECTIONS and isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    # the other sections, and what stands beside them, say nothing of the model
    return Settings({name: value for name, value in flat.items() if name.startswith(("data.", "model.", "training."))})


def _required(settings: Settings, name: str) -> None:
    if name not in settings:
        raise ValueError(f"config must say {name}, which the tensors do not; add it, as in {sorted(CONFIGS)[0]}")


def _plan_network(settings: Settings, found: dict[str, Any], attends: list[bool], *, path: Path) -> dict[str, Any]:
    for name in ("data.image_size", "model.name", "training.sde", "training.continuous"):
        _required(settings, name)
    network = settings.choice("model.name", "ncsnpp", ("ncsnpp", "ddpm"))
    image_size = settings.integer("data.image_size")
    levels = len(attends)
    if image_size % 2 ** (levels - 1):
        raise ValueError(
            f"config's data.image_size {image_size} cannot be halved {levels - 1} times, as checkpoint {path} does"
        )
    resolutions = [image_size // 2**i for i in range(levels)]
    attention = tuple(size for size, attend in zip(resolutions, attends, strict=True) if attend)
    said = settings.integers("model.attn_resolutions", attention)
    if {size for size in said if size in resolutions} != set(attention):
        raise ValueError(
            f"config's model.attn_resolutions is {said}, but checkpoint {path} has attention at {attention} with "
            f"data.image_size {image_size}; correct one of them"
        )
    settings.agree("data.num_channels", found["in_channels"], path=path)
    settings.agree("model.nf", found["channels"], path=path)
    settings.agree("model.ch_mult", found["channel_mult"], path=path)
    settings.agree("model.num_res_blocks", found["num_res_blocks"], path=path)
    settings.refuse_unless(**{"model.conditional": True, "model.nonlinearity": "swish"})
    settings.refuse_unless(**{"model.normalization": "GroupNorm", "model.attention_type": "ddpm"})
    if found["block"] == "ddpm":
        settings.agree("model.resamp_with_conv", found["resample_conv"], path=path)
    else:
        settings.ignore(["model.resamp_with_conv"])
    dropout = settings.number("model.dropout", 0.0)
    plan = {**found, "image_size": image_size, "attention_resolutions": attention, "dropout": dropout}
    if network == "ddpm":
        settings.ignore(_OF_NCSNPP)
        plain = {"fir_kernel": None, "input_pyramid": "none", "output_pyramid": "none"}
        return plan | plain | {"rescale": False, "min_group_channels": 1}
    for name in ("model.fir", "model.skip_rescale"):
        _required(settings, name)
    skip = {"none": "none", "residual": "residual", "skip": "input_skip"}[found["input_pyramid"]]
    settings.agree("model.progressive_input", skip, path=path)
    settings.agree("model.progressive", "output_skip" if found["output_pyramid"] == "skip" else "none", path=path)
    settings.agree("model.resblock_type", found["block"], path=path)
    settings.agree("model.embedding_type", "fourier" if found["embedding"] == "fourier" else "positional", path=path)
    settings.refuse_unless(**{"model.progressive_combine": "sum", "model.conv_size": 3})
    kernel = settings.numbers("model.fir_kernel", (1, 3, 3, 1))
    fir, rescale = settings.flag("model.fir", True), settings.flag("model.skip_rescale", True)
    return plan | {"fir_kernel": kernel if fir else None, "rescale": rescale}


def _noise_levels(settings: Settings, sigmas: Tensor | None, *, path: Path) -> tuple[int, float, float]:
    """Number of noise levels, sigma_min and sigma_max: as the config says, and as the buffer ``sigmas`` does."""
    num, low, high = 1000, 0.01, 50.0
    if sigmas is not None:
        if sigmas.ndim != 1 or len(sigmas) < 2:
            raise ValueError(f"checkpoint {path} has sigmas of shape {list(sigmas.shape)}, expected a vector")
        num, low, high = len(sigmas), float(sigmas[-1]), float(sigmas[0])
    said = settings.integer("model.num_scales", num, least=2)
    ends = settings.number("model.sigma_min", low), settings.number("model.sigma_max", high)
    fits = all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(ends, (low, high), strict=True))
    if sigmas is not None and (said != num or not fits):
        raise ValueError(
            f"config says {said} noise levels from {ends[0]:g} to {ends[1]:g}, but checkpoint {path} has {num} from "
            f"{low:g} to {high:g}; correct model.num_scales, sigma_min and sigma_max"
        )
    return said, *ends


def _plan_time(
    settings: Settings, embedding: str, sigmas: Tensor | None, *, path: Path
) -> tuple[dict[str, Any], str, TimeInput]:
    """The SDE, the parameterization and the time input."""
    sde = settings.choice("training.sde", "", ("vpsde", "subvpsde", "vesde"))
    # sub-VP has no discrete form: the project's own score function takes it as continuous whatever is said
    continuous = settings.flag("training.continuous", True) or sde == "subvpsde"
    exploding = sde == "vesde"
    num_scales, *ends = _noise_levels(settings, sigmas, path=path)
    centered = settings.flag("data.centered", not exploding)
    if settings.flag("model.scale_by_sigma", exploding) != exploding:
        raise ValueError(f"config's model.scale_by_sigma must be {exploding} with {sde}; correct one of them")
    if not centered and not exploding:
        raise ValueError(f"config's data.centered must be True with {sde}, whose data are in [-1, 1]; correct it")
    takes_sigma = exploding and continuous
    name = settings.choice("model.name", "ncsnpp", ("ncsnpp", "ddpm"))
    if (embedding == "fourier") != takes_sigma and not (name == "ddpm" and not takes_sigma):
        expected = "Fourier" if takes_sigma else "positional"
        raise ValueError(
            f"{'continuous' if continuous else 'discrete'} {sde} needs a {expected} embedding of the noise, but "
            f"checkpoint {path} has a {'Fourier' if embedding == 'fourier' else 'positional'} one; correct "
            "training.sde or training.continuous"
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
        network = _plan_network(settings, found, attends, path=path)
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"checkpoint {path} has tensors of shapes that no ncsnpp or ddpm has; fetch it again"
        ) from error
    sde, parameterization, time_input = _plan_time(settings, found["embedding"], tensors.get("sigmas"), path=path)
    settings.ignore(_IDLE)
    unknown = [name for name in settings.unknown() if name.startswith("model.")]
    if unknown:
        raise ValueError(choices_message("setting of the config", unknown[0], settings.known()))
    return ModelPlan("ncsnpp", network, sde, parameterization, time_input)


def _pick_weights(checkpoint: Any, weights: Weights, *, path: Path) -> dict[str, Tensor]:
    if weights not in ("ema", "raw"):
        raise ValueError(choices_message("weights", weights, ["ema", "raw"]))
    if not isinstance(checkpoint, Mapping) or "model" not in checkpoint:
        return strip_prefix(as_tensors(checkpoint, path=path))
    raw = strip_prefix(as_tensors(checkpoint["model"], path=path, what="part 'model' of checkpoint"))
    if weights == "raw":
        return raw
    ema = checkpoint.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    # a bare list in the order of the trained parameters: no buffers, no frequencies
    trained = [name for name in raw if name != "sigmas" and not _FREQUENCIES.fullmatch(name)]
    if not isinstance(shadow, Sequence) or not all(isinstance(tensor, Tensor) for tensor in shadow):
        raise ValueError(f"checkpoint {path} has no averaged weights under ema.shadow_params; import weights='raw'")
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
    model = plan_score_sde(tensors, config, path=path).build()
    backbone = model.backbone
    assert isinstance(backbone, NCSNpp)
    left = {name: tensor for name, tensor in tensors.items() if name != "sigmas"}
    load_renamed(backbone, left, score_sde_sources(backbone), path=path)
    return model
