"""Edited images: ``--mode edit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiment.build import pick_device
from experiment.config import Config, parse_options
from experiment.config.checks import check_config
from experiment.precision import fast_inference
from experiment.workdir import check_for_use
from models import ScoreModel
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.processes.ranks import ALONE
from runtime.terminal import ProgressBar
from samplers import GridSampler
from tasks.editing import Counterfactual, Edited, EditMethod, EditTask, FineTuning, flow_of, make_edit_method, time_of

from ..latents.started import grid_sampler_of
from ..sample import SampledRun, check_folder, load_sampled
from ..subject import refuse_latents, refuse_untold
from .report import write_edited
from .subjects import Subjects, Told, classes_told, load_subjects
from .tuning import class_score, save_tuned, tuned_network


def edit_images(config: Config, workdir: Path, *, output: str = "", input: str = "") -> dict[str, Any]:
    """Edit images; write ``grid.png``, ``edited.npz`` and, last, ``report.json``.

    Image k is the same whatever the other images and the batch size are, up to rounding.

    Args:
        config: The config the work directory was trained with; ``edit`` and ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``edited`` in the work directory.
        input: An image file, a folder or an ``.npz`` file of the images; "" for those of a split.

    Returns:
        The report.

    Raises:
        ValueError: If the config does not fit the work directory, or method, time, classes and sampler each other.
        FloatingPointError: If the sampler's state or the loss stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If a solver gave up, or another command writes there.
    """
    check_config(config)
    folder, name = Path(output) if output else workdir / "edited", config.edit.method
    method, given = make_edit_method(name, parse_options(config.edit.method_options)), config
    if method.follows_flow:
        config = config.copy_and_resolve_references()
        # with bounds of x0 the flow would be no bijection
        config.sampling.update({"clip_x0": False, "threshold_x0": 0.0})
    with explain_out_of_memory("sampling.batch_size", config.sampling.batch_size):
        check_for_use(workdir, config)
        check_folder(folder)
        run = load_sampled(config, workdir, pick_device(config), ALONE)
        refuse_untold(run.config, run.kind, "edit")
        if isinstance(method, Counterfactual):
            refuse_latents(run.config, "edit with counterfactual", "compares pixels")
        sampler = flow_of(name, run.sampler) if method.follows_flow else grid_sampler_of(run, "edit")
        t = _time(run, method, sampler)
        subjects = load_subjects(run, input)
        told = classes_told(run, method, subjects)
        score = class_score(run) if isinstance(method, FineTuning) else None
        with locked(folder, "edit", flag="--output"):
            run.say_notes()
            if isinstance(method, FineTuning) and score is not None:
                tuned = tuned_network(run, method, score, t)
                edited = _edited(run, method, sampler, (run.trained, tuned), subjects, told, t)
                save_tuned(given, run, tuned, folder / "tuned")
            else:
                network = fast_inference(run.trained, run.mode)
                edited = _edited(run, method, sampler, (network, run.model), subjects, told, t)
            return write_edited(run, method, subjects, told, edited, t, score, folder)


def _time(run: SampledRun, method: EditMethod, sampler: GridSampler) -> float:
    """The time that images are taken to, at which the sampler can start."""
    settings, sde = run.config.edit, run.model.sde
    noise_ratio = settings.noise_ratio or (0.0 if settings.t else method.noise_ratio)
    t = time_of(sde, noise_ratio) if noise_ratio else settings.t or float(sampler.times(sde)[0])
    times = sampler.starting_at(sde, t).times(sde)
    if method.follows_flow and int((sde.sigma(times) > 0).sum()) < 2:
        raise ValueError(
            f"the grid has no time with noise below t = {t:.4g}, got sampling.grid={run.config.sampling.grid} of "
            f"{run.config.sampling.num_steps} steps; raise edit.t or sampling.num_steps, or set sampling.grid=log_snr"
        )
    return t


def _edited(
    run: SampledRun,
    method: EditMethod,
    sampler: GridSampler,
    models: tuple[ScoreModel, ScoreModel],
    subjects: Subjects,
    told: Told,
    t: float,
) -> Edited:
    """All images, in batches."""
    parts = []
    batches = torch.arange(len(subjects.x0)).split(run.config.sampling.batch_size)
    with ProgressBar(unit="batch", desc="edit", total=len(batches)) as bar:
        for rows in batches:
            source, target = (None if one is None else one[rows].to(run.device) for one in (told.source, told.target))
            task = EditTask(subjects.x0[rows].to(run.device), t, rows.tolist(), source, target, run.config.seed)
            parts.append(method.edit(*models, sampler, task))
            bar.update()
    x_t, x0 = (torch.cat([getattr(one, name) for one in parts]).cpu() for name in ("x_t", "x0"))
    others = {name: torch.cat([one.others[name] for one in parts]).cpu() for name in parts[0].others}
    return Edited(x_t, x0, max(one.nfe for one in parts), others)
