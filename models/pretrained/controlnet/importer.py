"""ControlNets of Stable Diffusion, read without the projects that they are from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...backbones import ADM, ControlNet
from ..autoencoder_kl.files import FILES, is_single_file
from ..diffusers.files import find_folder, read_weights
from ..diffusers.names import with_new_names
from ..diffusers.settings import halves_are_swapped
from ..shared.renaming import Source, load_renamed
from ..shared.settings import read_json
from ..shared.tensors import as_tensors, check_project, read_checkpoint, strip_prefix
from .names import of_authors, of_diffusers
from .settings import HintPlan, check_base, plan_control

_KIND, _CONTROL = "ControlNetModel", "control_model."


def from_controlnet(name: Path | str, base: ADM) -> ControlNet:
    """Read a ControlNet of Stable Diffusion 1 or 2, in diffusers' layout or in that of its authors.

    Its hints are in [0, 1], as published, and so is what ``forward`` takes: images in [-1, 1], as they are elsewhere
    here, are ``(image + 1) / 2``. They are of 8 times the resolution of the latents, and of RGB; where the network was
    trained with BGR, its first convolution is turned around once.

    Args:
        name: A folder of diffusers' ``ControlNetModel``, or its name on the Hugging Face hub; or a ``.pth``, ``.ckpt``
            or ``.safetensors`` with names such as ``control_model.zero_convs.0.0.weight``, with that prefix or without,
            or a folder with one such file. What else such a file holds, as Stable Diffusion itself, is left out.
        base: The U-Net that it was trained for, whose ``image_size`` it takes; it is left as it is.

    Returns:
        The ControlNet, in evaluation mode, on the base's device and in its dtype.

    Raises:
        ValueError: In one line: a file is missing or cannot be read, tensors are missing or left over, or a setting is
            not supported or of another network than the base.

    Source: Zhang et al. 2023 (ControlNet).

    Example:
        >>> base = from_stable_diffusion("stable-diffusion-v1-5/stable-diffusion-v1-5").prior.backbone
        >>> control = from_controlnet("lllyasviel/sd-controlnet-canny", base)
        >>> network = ControlledBackbone(base, [control])
        >>> network(x, c_noise, image=edges, tokens=tokens)  # edges of 0 and 1, [B, 3, 512, 512]
    """
    path = Path(name) if is_single_file(name) else find_folder(name, places=("",))
    if path.is_dir() and not (path / "config.json").is_file():
        path = _only_file(path)
    plan, file, tensors, sources_of = (_read_folder if path.is_dir() else _read_file)(path, base)
    factor = 2 ** (len(plan.widths) - 1)
    control = ControlNet(base, hint_channels=plan.channels, hint_widths=plan.widths, hint_factor=factor)
    control = control.to(base.conv_in.weight)
    load_renamed(control, tensors, sources_of(control), path=file)
    return control.eval()


_Read = tuple[HintPlan, Path, dict[str, Tensor], Callable[[ControlNet], Mapping[str, Source]]]


def _read_folder(folder: Path, base: ADM) -> _Read:
    """The hint, the file of the weights, these, and their names, of a folder of diffusers."""
    said = read_json(folder / "config.json", f"{_KIND}'s config")
    kind = said.get("_class_name", _KIND)
    if kind != _KIND:
        raise ValueError(f"the network of {folder} must be a {_KIND}, got {kind}; pass the folder of a ControlNet")
    plan = plan_control(said, base, path=folder / "config.json")
    path, tensors = read_weights(folder)
    sources_of = partial(
        of_diffusers,
        halves_swapped=halves_are_swapped(said),
        convolutions=not said.get("use_linear_projection", False),
        bgr=plan.bgr,
    )
    return plan, path, with_new_names(tensors), sources_of


def _read_file(path: Path, base: ADM) -> _Read:
    """The same of a file of the authors, whose tensors say the widths of the hint's layers."""
    check_base(base, path=path)
    held: Any = read_checkpoint(path)
    if isinstance(held, Mapping) and "state_dict" in held:
        held = held["state_dict"]
    tensors = strip_prefix(as_tensors(held, path=path))
    if "controlnet_cond_embedding.conv_in.weight" in tensors:
        raise ValueError(f"{path} is of diffusers' {_KIND}, whose settings it does not hold; pass its folder")
    if "difference" in tensors:
        raise ValueError(
            f"{path} has the differences of a ControlNet from its U-Net, which are not supported; fetch the whole one"
        )
    if any(name.startswith(_CONTROL) for name in tensors):
        tensors = {name.removeprefix(_CONTROL): one for name, one in tensors.items() if name.startswith(_CONTROL)}
    check_project(tensors, "input_hint_block.0.weight", "ControlNet", path=path)
    layers = [tensors.get(f"input_hint_block.{4 * i}.weight") for i in range(len(HintPlan().widths))]
    # a layer that is missing or of another kind is refused when all are loaded
    shapes = [None if layer is None or layer.ndim != 4 else layer.shape for layer in layers]
    widths = (least if shape is None else shape[0] for shape, least in zip(shapes, HintPlan().widths, strict=True))
    plan = HintPlan(HintPlan().channels if shapes[0] is None else shapes[0][1], tuple(widths))
    linear = any(name.endswith(".proj_in.weight") and one.ndim == 2 for name, one in tensors.items())
    return plan, path, tensors, partial(of_authors, convolutions=not linear)


def _only_file(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in FILES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise ValueError(
            f"{folder} must have the config.json of a {_KIND}, or one file of weights, got {names}; pass one of them"
        )
    return found[0]
