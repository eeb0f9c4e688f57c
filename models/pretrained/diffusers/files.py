"""Files of a model in folders of Hugging Face's diffusers: the network, its weights, the scheduler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor

from ..shared.settings import read_json
from ..shared.tensors import read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# each is asked for in turn, so that no more is fetched than is read
_ON_THE_HUB = (*WEIGHTS, "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin")
_INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
# of Stable Diffusion 1 and 2, and what takes no part in its samples
_OF_TEXTS = {"unet", "scheduler", "vae", "text_encoder", "tokenizer"}
_LEFT_OUT = {"safety_checker", "feature_extractor"}
# in one file or as the index of several, of which safetensors are the first choice
_WHOLE = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>\w+))?\.(?:safetensors|bin)")
_SHARDED = re.compile(r"diffusion_pytorch_model\.(?:safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")


def find_folder(name: Path | str, places: Sequence[str] = ("*",)) -> Path:
    """A folder, fetched by the package ``huggingface_hub`` where it is none here.

    Args:
        name: A folder, or owner/name on the Hugging Face hub.
        places: Where on the hub the weights may be, as patterns before their name; the first that has any is fetched.

    Raises:
        ValueError: In one line: it is neither, or cannot be fetched, or has no weights.
    """
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
        for pattern in (f"{place}{weights}" for place in places for weights in _ON_THE_HUB):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", pattern]))
            if any(fnmatch(path.relative_to(folder).as_posix(), pattern) for path in folder.rglob("*")):
                return folder
    except Exception as error:  # its errors have no common base
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{name} is no folder, and cannot be fetched from the hub ({first}); check the name"
        ) from error
    raise ValueError(f"{name} on the hub has no weights; {' or '.join(WEIGHTS)} must be there")


def find_files(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Find the files of a pipeline, of a training script's ``checkpoint-N``, or of a bare ``unet`` folder.

    Args:
        folder: A pipeline has ``model_index.json``, and of latents an autoencoder, of texts their encoder, which are
            not read here; a ``checkpoint-N`` has the folders ``unet`` and, where the script averages weights,
            ``unet_ema``, which is preferred. Of these, and of a bare network, the scheduler is what stands beside them.

    Returns:
        The folder of the network; the scheduler's settings, or None if no file says them; and what was chosen, a line
        each.

    Raises:
        ValueError: In one line: it is none of these, or a pipeline of other models.
    """
    if not (folder / _INDEX).exists():
        if (folder / "config.json").is_file():
            return _apart(folder)
        if (folder / "unet_ema").is_dir():
            return _apart(folder / "unet_ema", f"of {folder}, unet_ema is read, the averaged weights")
        if (folder / "unet").is_dir() and not (folder / "scheduler").is_dir():
            return _apart(folder / "unet", f"of {folder}, unet is read; there is no unet_ema, averaged weights")
        checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
        if checkpoints:
            raise ValueError(
                f"{folder} is a training script's, with {', '.join(checkpoints[:3])} in it; pass one of these"
            )
    notes = _check_index(folder)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    return unet, scheduler / SCHEDULER, notes


def _apart(unet: Path, *notes: str) -> tuple[Path, Path | None, tuple[str, ...]]:
    """A network outside of a pipeline, with the scheduler in its folder or of the pipeline around it."""
    parent = unet.resolve().parent
    pipelines = [parent, parent.parent] if parent.name.startswith("checkpoint-") else [parent]
    places = [unet / SCHEDULER, *(pipeline / "scheduler" / SCHEDULER for pipeline in pipelines)]
    file = next((place for place in places if place.is_file()), None)
    return unet, file, notes if file is None else (*notes, f"the scheduler is that of {file}")


def _check_index(folder: Path) -> tuple[str, ...]:
    """Refuse pipelines of other models, and say what is left out."""
    index = read_json(folder / _INDEX, "pipeline's")
    models = {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    if models - {"vqvae"} != {"unet", "scheduler"} and models - _LEFT_OUT != _OF_TEXTS:
        fix = "its vae alone can be read, by --source autoencoder_kl" if "vae" in models else "it is not supported"
        fix = "its prior can be read, by --source diffusers_prior" if "prior" in models else fix
        fix = "take --source diffusers_dit" if index.get("_class_name") == "DiTPipeline" else fix
        raise ValueError(
            f"the pipeline of {folder} must consist of a unet and a scheduler, of texts of a vae, a text_encoder and a "
            f"tokenizer too, got {index.get('_class_name')} of {', '.join(sorted(models)) or 'nothing'}; {fix}"
        )
    return tuple(f"the {name} of {folder} is left out" for name in sorted(models & _LEFT_OUT))


def read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The tensors of a network's folder: in one file or in shards, of a variant such as fp16 where there is no other.

    Returns:
        The file, of shards their index, and the tensors without the prefixes of wrappers.

    Raises:
        ValueError: In one line: there are none, they cannot be read, or several variants may be meant.
    """
    path = _choose_weights(folder)
    return path, _read_shards(path) if path.suffix == ".json" else read_tensors(path)


def _choose_weights(folder: Path) -> Path:
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        match = _WHOLE.fullmatch(path.name) or _SHARDED.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["variant"] or "", []).append(path)
    if "" not in found and len(found) > 1:
        raise ValueError(
            f"{folder} has weights of several variants ({', '.join(sorted(found))}) and none of no variant; "
            "leave one of them there"
        )
    if found:
        of_one = found.get("") or next(iter(found.values()))
        return min(of_one, key=lambda path: (".safetensors" not in path.name, path.suffix == ".json"))
    others = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    fix = f"; save_pretrained() what is in {', '.join(others[:3])}" if others else ""
    raise ValueError(f"{folder} has no weights; {' or '.join(WEIGHTS)} must be there{fix}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = read_json(index, "index of weights").get("weight_map")
    # a file beside the index, or a forged one could name any
    if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
        raise ValueError(f"index of weights {index} must map tensors to files beside it; fetch it again")
    tensors: dict[str, Tensor] = {}
    missing = sorted(shard for shard in set(shards.values()) if not (index.parent / shard).is_file())
    if missing:
        raise ValueError(f"{index} names {', '.join(missing[:3])}, which is not beside it; fetch it too")
    for shard in sorted(set(shards.values())):
        tensors |= read_tensors(index.parent / shard)
    return tensors
