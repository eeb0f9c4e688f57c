"""The table of modes: functions, which are imported only to be run, their own flags, and words for ``--help``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A value of ``--mode``.

    Attributes:
        where: The function in ``commands``, as "module:name". It is called with the config, the work directory, those
            of its own flags that were given, and ``ranks`` unless the mode is for one process.
        does: A few words for ``--help``.
        example: The arguments of a command, for ``--help``.
        flags: Names of its own flags, which are refused with other modes.
        one_process: It cannot run under torchrun.
    """

    where: str
    does: str
    example: str
    flags: tuple[str, ...] = ()
    one_process: bool = False

    @property
    def function(self) -> Callable[..., object]:
        """The function itself, imported when it is asked for."""
        module, name = self.where.split(":")
        return getattr(importlib.import_module(f"commands.{module}"), name)


MODES = {
    "train": Mode(
        "train:train",
        "train, or resume from the newest checkpoint",
        "--config configs/vp/digits.py --mode train",
        flags=("init_from",),
    ),
    "eval": Mode(
        "eval:evaluate",
        "measure the likelihood of the test images",
        "--config configs/vp/digits.py --mode eval --config.eval.num_images=20",
    ),
    "classify": Mode(
        "classify:classify",
        "tell the classes of the test images by likelihood",
        "--config configs/vp/digits.py --mode classify --config.model.class_conditional=true",
    ),
    "sample": Mode(
        "sample:sample",
        "draw samples",
        "--config configs/vp/digits.py --mode sample --output drawn",
        flags=("output", "input", "hint", "prompt", "prompts"),
    ),
    "restore": Mode(
        "ensembles.restore:restore",
        "draw what a measurement leaves open: fill in, enlarge, sharpen",
        "--config configs/vp/digits.py --mode restore --input photo.png --mask mask.png",
        flags=("output", "input", "mask"),
    ),
    "segment": Mode(
        "ensembles.segment:segment",
        "draw masks of images, several of each, and measure them",
        "--config configs/vp/digits_segment.py --mode segment --input photo.png",
        flags=("output", "input"),
    ),
    "interpolate": Mode(
        "latents.interpolate:interpolate_pairs",
        "go from one image to another through their latents",
        "--config configs/vp/digits.py --mode interpolate --config.sampling.sampler=probability_flow",
        flags=("output", "input"),
        one_process=True,
    ),
    "edit": Mode(
        "editing.edit:edit_images",
        "edit images: noise and back, another class, maps of lesions",
        "--config configs/vp/digits.py --mode edit --config.edit.t=0.3",
        flags=("output", "input"),
        one_process=True,
    ),
    "progressive": Mode(
        "latents.progressive:progressive",
        "show samples as they come about, and what x_t holds of an image",
        "--config configs/vp/digits.py --mode progressive --config.progressive.share_at=0.3,0.6",
        flags=("output",),
    ),
    "couple": Mode(
        "couple:couple",
        "draw couples of noise and sample, for a reflow",
        "--config configs/flow/digits.py --mode couple --config.sampling.num_samples=5000",
        flags=("output",),
    ),
    "import": Mode(
        "import_checkpoint:import_checkpoint",
        "turn a published checkpoint into a run",
        "--config configs/pretrained/ddpm_cifar10.py --mode import --source ddpm --checkpoint model-790000.ckpt",
        flags=("source", "checkpoint"),
        one_process=True,
    ),
    "ema": Mode(
        "average:average_weights",
        "average the weights over another width, after the training",
        "--config configs/vp/digits.py --mode ema --sigma-rel 0.13",
        flags=("sigma_rel", "output"),
        one_process=True,
    ),
    "export": Mode(
        "export:export_model",
        "write the averaged weights for another project",
        "--config configs/vp/digits.py --mode export --format diffusers",
        flags=("format", "output"),
        one_process=True,
    ),
}
