"""A set of samples in a folder: its batches while they are drawn, then its files, and what made them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from os import replace as _replace
from pathlib import Path
from typing import Any

import numpy as np

from data import AnyKind, ImageKind
from experiment.pictures import array_shape, film_of, has_picture, picture_of, save_film, save_png
from experiment.text.pictures import captioned_grid
from experiment.workdir import save_npz, write_json
from runtime.files import make_folder, one_line, parse_json, read_regular, sync_folder, sync_tree

from ..kept_batches import PartialResults
from ..measurement import Values
from ..table import without_nan
from .sample_files import open_npz, read_npz, save_pngs, save_trajectory_gif

_ABOUT, _STAGES = "samples.json", "stages"
# all that belongs to a set
FILES = (
    _ABOUT,
    "samples.npz",
    "captions.txt",
    "grid.png",
    "grid.gif",
    "conditions.png",
    "png",
    "trajectory.npz",
    "trajectory.gif",
    _STAGES,
)
IN_GRID, _IN_SCATTER, _IN_FILM = 256, 10_000, 64
_CLIPS = "NFHWC"
_OF_FRAME, _LAST_FRAME = 200, 600  # milliseconds


class SampleSet:
    """The samples of one command.

    Each batch is kept in ``partial/`` of the folder as it is drawn, complete or absent. When all are there, the files
    are made of them, and take the place of another set's, which are moved into a folder of their own: nothing is lost.

    Args:
        folder: Where the files go.
        fingerprint: All that the samples depend on, but their number; see ``samples_fingerprint``.
        about: What the reader of ``samples.json`` is told besides.
        kind: What the samples are.
        num_samples: How many there are.
        batch_size: How many a batch has; the last one may be short.
        labels: Classes of the samples, int64 [num_samples]; None without classes.
        pngs: Whether a folder of PNGs is wanted.
        condition_images: What the model was told of the first samples, uint8 [n, H, W, C]; None where no image. Frames
            that were given, uint8 [n, f, H, W, C], are shown before those that were drawn.
        captions: Caption of each sample, written under it and into ``captions.txt``; None without.
        stages: The images of a cascade's earlier stages by name, which a batch has under that name too.

    Attributes:
        folder: Where the files go.
        digest: Of the fingerprint.
        kind: What the samples are.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Any],
        about: dict[str, Any],
        *,
        kind: AnyKind,
        num_samples: int,
        batch_size: int,
        labels: np.ndarray | None,
        pngs: bool,
        condition_images: np.ndarray | None = None,
        captions: Sequence[str] | None = None,
        stages: Mapping[str, ImageKind] | None = None,
    ) -> None:
        self.folder, self._fingerprint, self._about = folder, fingerprint, without_nan(about)
        self.kind, self._labels, self._pngs = kind, labels, pngs
        self._dtype = np.dtype(np.uint8 if isinstance(kind, ImageKind) else np.float32)
        self._num_samples, self._batch_size = num_samples, batch_size
        self._condition_images, self._captions, self._stages = condition_images, captions, stages or {}
        self._made_by = {"num_samples": num_samples, "fingerprint": fingerprint}
        self._partial = PartialResults(folder / "partial" / _name(about, fingerprint), fingerprint, done="drawn")
        self.digest = self._partial.digest

    def __len__(self) -> int:
        """The number of batches."""
        return -(-self._num_samples // self._batch_size)

    def index(self, k: int) -> range:
        """The numbers of the samples of batch k."""
        return range(k * self._batch_size, min((k + 1) * self._batch_size, self._num_samples))

    def kept(self) -> str:
        """The number of batches that are kept, in words."""
        return f"{min(self._partial.count(), len(self))} of {len(self)} batches"

    def find(self) -> list[str] | None:
        """Look for all that is wanted; if it has been moved aside, move it back.

        Returns:
            None if it is not there; else lines on what was moved.
        """
        if self._is_complete(self.folder):
            return []
        aside = self.folder / _name(self._about, self._made_by)
        if not self._is_complete(aside):
            return None
        notes = self._install(aside)
        shutil.rmtree(aside)
        return notes

    def known(self) -> tuple[list[int], list[str]]:
        """The numbers of the batches that need not be drawn, and a line for each reason why others are not used."""
        numbers, notes = self._partial.good(
            len(self), lambda k, values: values["images"].shape[0] == len(self.index(k))
        )
        taken = self._take_over(numbers)
        others = [path.name for path in sorted((self.folder / "partial").glob("*")) if path != self._partial.folder]
        if others:
            notes.append(
                f"{self.folder / 'partial'} keeps unfinished samples of other commands, {', '.join(others[:3])}"
                f"{' and more' * (len(others) > 3)}: they go on from there; delete what is not wanted"
            )
        return sorted([*numbers, *taken]), notes

    def encode(self, k: int, values: Values) -> bytes:
        """A batch as bytes: "images", uint8 [b, H, W, C] (vectors: float32 [b, D]), "nfe", a trajectory, stages."""
        return self._partial.encode(k, values)

    def keep(self, k: int, data: bytes) -> None:
        """Write an encoded batch."""
        self._partial.keep(k, data)

    def finish(self) -> tuple[int, list[str]]:
        """Make the files of all batches; what was kept of them is deleted.

        Returns:
            Network calls a batch, at most, and a line if another set was moved aside.
        """
        staged = self._partial.folder / "files"
        shutil.rmtree(staged, ignore_errors=True)
        make_folder(staged / "png" if self._pngs else staged)
        nfe = self._write(staged)
        write_json(staged / _ABOUT, self._about | {"nfe": nfe} | self._made_by)
        sync_tree(staged)
        notes = self._install(staged)
        shutil.rmtree(staged)
        # a smaller number than before leaves the other batches for whoever goes on with the larger
        if self._partial.count() <= len(self):
            self._partial.drop()
        return nfe, notes

    def _write(self, folder: Path) -> int:
        """Write all files but ``samples.json``; return the network calls a batch."""
        nfe, shown, recorded = 0, [], []
        # of points more can be told apart than of images
        most = IN_GRID if isinstance(self.kind, ImageKind) else _IN_SCATTER
        shape = (self._num_samples, *array_shape(self.kind))
        with open_npz(folder / "samples.npz", shape, self._labels, dtype=self._dtype) as append:
            for k in range(len(self)):
                values = self._partial.read(k)
                images, nfe = values["images"], max(nfe, int(values["nfe"]))
                append(images)
                first = self.index(k).start
                if first < most:
                    shown.append(images[: most - first])
                if self._pngs:
                    save_pngs(folder / "png", images, first)
                if "states" in values:
                    recorded.append(values)
        if self._captions is not None:
            (folder / "captions.txt").write_text(
                "".join(f"{one_line(caption, 10_000)}\n" for caption in self._captions)
            )
        if has_picture(self.kind):
            images = np.concatenate(shown)
            if images.ndim == len(_CLIPS) and self._condition_images is not None:
                images = np.concatenate((self._condition_images, images[: len(self._condition_images)]), axis=1)
            captions = self._captions if isinstance(self.kind, ImageKind) else None
            grid = picture_of(images) if captions is None else captioned_grid(images, captions[: len(images)])
            save_png(folder / "grid.png", grid)
            if images.ndim == len(_CLIPS):
                film = film_of(images[:_IN_FILM])
                save_film(folder / "grid.gif", film, [_OF_FRAME] * (len(film) - 1) + [_LAST_FRAME])
        if self._condition_images is not None:
            save_png(folder / "conditions.png", picture_of(self._condition_images))
        if recorded:
            states, t = np.concatenate([values["states"] for values in recorded], axis=1), recorded[0]["t"]
            save_npz(folder / "trajectory.npz", {"states": states, "t": t})
            if isinstance(self.kind, ImageKind):
                save_trajectory_gif(folder / "trajectory.gif", states, recorded[0]["scales"], self.kind.space)
        for name, kind in self._stages.items():
            self._write_stage(folder / _STAGES, name, kind)
        return nfe

    def _write_stage(self, folder: Path, name: str, kind: ImageKind) -> None:
        """Write the images of a stage, as ``samples.npz`` and ``grid.png`` have those of the last one."""
        make_folder(folder)
        shown, shape = [], (self._num_samples, *array_shape(kind))
        with open_npz(folder / f"{name}.npz", shape, self._labels, dtype=self._dtype) as append:
            for k in range(len(self)):
                images = self._partial.read(k)[name]
                append(images)
                shown.append(images[: max(IN_GRID - self.index(k).start, 0)])
        save_png(folder / f"{name}.png", picture_of(np.concatenate(shown)))

    def _is_complete(self, folder: Path) -> bool:
        found = _about(folder)
        same = {key: found.get(key) for key in self._made_by} == self._made_by
        wanted = [
            "samples.npz",
            *["grid.png"] * has_picture(self.kind),
            *["png"] * self._pngs,
            *[_STAGES] * bool(self._stages),
        ]
        # what is kept is deleted last
        unfinished = folder == self.folder and (self._partial.folder / "files").exists()
        return same and not unfinished and all((folder / name).exists() for name in wanted)

    def _take_over(self, numbers: list[int]) -> list[int]:
        """Keep batches of the samples that stand in the folder, if they are some of ours, as of a smaller number."""
        found = _about(self.folder)
        if found.get("fingerprint") != self._made_by["fingerprint"] or found.get("record_trajectory") or self._stages:
            return []
        taken = []
        try:
            for k, images in enumerate(read_npz(self.folder / "samples.npz", self._batch_size)):
                if k < len(self) and k not in numbers and len(images) == len(self.index(k)):
                    self.keep(k, self.encode(k, {"images": images, "nfe": np.asarray(found["nfe"])}))
                    taken.append(k)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            # it cannot be told which of them are damaged
            for k in taken:
                self._partial.discard(k)
            return []
        return taken

    def _install(self, source: Path) -> list[str]:
        """Move files into the folder, and those of another set out of the way; return a line if there was one."""
        notes = []
        found = _about(self.folder)
        present = [name for name in reversed(FILES) if (self.folder / name).exists()]
        if present and {key: found.get(key) for key in self._made_by} != self._made_by:
            aside = self.folder / _name(found, {key: found.get(key) for key in self._made_by})
            # of a version that did not say what made them
            number = 1
            while not found and aside.exists():
                number += 1
                aside = self.folder / f"earlier-{number}"
            make_folder(aside)
            _move(self.folder, aside, present)
            notes.append(f"{self.folder} held other samples, which are in {aside} now")
        # first what says whose the others are, so that a kill in between loses nothing
        _move(source, self.folder, [name for name in FILES if (source / name).exists()])
        return notes


def _move(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        _replace(source / name, target / name)
    sync_folder(target)


def _about(folder: Path) -> dict[str, Any]:
    """The contents of ``samples.json``; nothing if it is not there, or damaged."""
    try:
        return parse_json(read_regular(folder / _ABOUT))
    except (OSError, ValueError):
        return {}


def _name(about: dict[str, Any], of: dict[str, Any]) -> str:
    """A folder's name, "ddim-50-seed0-step1000-1a2b3c4d", in which samples of another kind do not lie."""
    if not about:
        return "earlier"
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
    sampler, num_steps, seed, step = (about.get(key) for key in ("sampler", "num_steps", "seed", "step"))
    return re.sub(r"[^\w.-]", "_", f"{sampler}-{num_steps}-seed{seed}-step{step}-{digest}")
