"""Pipelines of Hugging Face's diffusers, read without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import ADM, NCSNpp, UNet
from .diffusers_names import diffusers_sources, with_new_names
from .diffusers_ncsnpp import skip_block_sources
from .diffusers_settings import halves_are_swapped, plan_diffusers
from .plan import PlannedModel
from .renaming import load_renamed
from .settings import read_json
from .tensors import read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def from_diffusers(name: Path | str) -> PlannedModel:
    """Read a pipeline of ``UNet2DModel`` and a scheduler of betas, such as DDPM's or DDIM's.

    The JSON files and the tensors are read here: diffusers need not be installed. The table is that of the scheduler's
    settings in float64, which diffusers rounds to float32.

    Args:
        name: A folder with ``model_index.json``, or a name on the Hugging Face hub such as
            ``google/ddpm-cifar10-32``, which is fetched by the package ``huggingface_hub``. The network is in
            ``unet/`` and the scheduler in ``scheduler/``, or both beside ``model_index.json``, as in old pipelines.

    Returns:
        The model, in evaluation mode, of data in [-1, 1].

    Raises:
        ValueError: In one line: a file is missing, cannot be read or contradicts another, or the pipeline is of
            another kind.
    """
    folder = _find(name)
    _check_index(folder)
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    unet = read_json(unet_folder / "config.json", "UNet2DModel's config")
    kind = unet.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"the network of {folder} must be a UNet2DModel, got {kind}; it is not supported")
    scheduler = read_json(scheduler_folder / "scheduler_config.json", "scheduler's config")
    path, tensors = _read_weights(unet_folder)
    model = plan_diffusers(unet, scheduler).build()
    backbone = model.backbone
    if isinstance(backbone, NCSNpp):
        sources = skip_block_sources(backbone)
    else:
        assert isinstance(backbone, UNet | ADM)
        sources = diffusers_sources(backbone, halves_swapped=halves_are_swapped(unet))
    load_renamed(backbone, with_new_names(tensors), sources, path=path)
    return model


def _check_index(folder: Path) -> None:
    index: dict[str, Any] = read_json(folder / "model_index.json", "pipeline's")
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    if parts != {"unet", "scheduler"}:
        raise ValueError(
            f"the pipeline of {folder} must consist of a unet and a scheduler, got {index.get('_class_name')} of "
            f"{', '.join(sorted(parts)) or 'nothing'}; it is not supported"
        )


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, read_tensors(folder / name)
    others = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    fix = f"; save_pretrained() in one file and without variant what is in {', '.join(others[:3])}" if others else ""
    raise ValueError(f"{folder} has no weights; {' or '.join(WEIGHTS)} must be there{fix}")


def _find(name: Path | str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or Path(name).is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise ValueError(f"{name} is no folder; pass that of model_index.json, or owner/name of the Hugging Face hub")
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{name} is no folder, and to fetch it from the hub needs huggingface_hub; pip install it"
        ) from None
    try:
        for weights in WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", f"*{weights}"]))
            if any(folder.rglob(weights)):
                return folder
    except Exception as error:  # its errors have no common base
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{name} is no folder, and cannot be fetched from the hub ({first}); check the name"
        ) from error
    raise ValueError(f"{name} on the hub has no weights; {' or '.join(WEIGHTS)} must be there")
