"""Couples of noise and sample for a reflow: ``--mode couple``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import COUPLES
from evaluation.kept_batches import PartialResults
from evaluation.measurement import Values
from evaluation.over_ranks import deal, says_what_is_kept
from evaluation.table import plus_minus
from experiment.build import pick_device
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.workdir import check_for_use, save_npz, write_json
from likelihood import mean_and_stderr
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks
from runtime.terminal import ProgressBar
from samplers import GridSampler, StepState
from sde_lib import NoiseStreams
from tasks.couples import draw_couples

from .ensembles.kept import plan_kept
from .sample import SampledRun, check_folder, load_sampled
from .subject import refuse_untold


def couple(config: Config, workdir: Path, *, output: str = "", ranks: Ranks = ALONE) -> dict[str, Any]:
    """Draw ``sampling.num_samples`` couples of noise and sample; write ``couples.npz`` and ``couples.json``.

    Batches are kept as they come, so that an interrupted command goes on to the same couples. Under torchrun they are
    dealt to its processes.

    Args:
        config: The config the work directory was trained with; ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``couples`` in the work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, or the sampler does not follow the flow.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If another command writes there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    folder, settings = Path(output) if output else workdir / "couples", config.sampling
    with explain_out_of_memory("sampling.batch_size", settings.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        check_folder(folder)
        run = load_sampled(config, workdir, ranks.device(pick_device(config)), ranks)
        refuse_untold(config, run.kind, "couple")
        if ranks.first:
            held.enter_context(locked(folder, "couple", flag="--output"))
            run.say_notes()
        kept = PartialResults(folder / "partial", run.fingerprint(), done="drawn")
        batches = [
            range(first, min(first + settings.batch_size, settings.num_samples))
            for first in range(0, settings.num_samples, settings.batch_size)
        ]
        stopped = f"of {len(batches)} batches kept; the same command goes on from there"
        with says_what_is_kept(lambda: f"stopped with {kept.count()} {stopped}"):
            _draw(run, kept, batches, ranks)
            return _write(run, kept, len(batches), folder) if ranks.first else {}


def _draw(run: SampledRun, kept: PartialResults, batches: list[range], ranks: Ranks) -> None:
    """Draw what is not kept from before, each batch on its process."""
    todo = plan_kept(kept, len(batches), ranks)
    with ProgressBar(unit="step", desc="couple", disable=not ranks.first) as bar:

        def progress(state: StepState) -> None:
            bar.total = len(todo[ranks.rank :: ranks.world]) * state.num_steps
            bar.update()

        def drawn(unit: str) -> bytes:
            return kept.encode(int(unit), _batch(run, batches[int(unit)], progress))

        deal(ranks, todo, drawn, lambda unit, data: kept.keep(int(unit), data))


def _batch(run: SampledRun, index: range, progress: Any) -> Values:
    """The arrays of a batch."""
    labels = torch.tensor(run.classes or (0,))[torch.tensor(index) % len(run.classes or (0,))]
    assert isinstance(run.sampler, GridSampler)
    couples = draw_couples(
        run.model,
        run.sampler,
        NoiseStreams(run.config.seed, index),
        sample_shape=run.kind.sample_shape,
        cond=None if run.classes is None else labels.to(run.device),
        device=run.device,
        hooks=(progress,),
    )
    of_path = {} if couples.straightness is None else {"straightness": couples.straightness.cpu().numpy()}
    arrays = {name: one.float().cpu().numpy() for name, one in (("x0", couples.x0), ("noise", couples.noise))}
    return arrays | {"labels": labels.numpy(), "nfe": np.asarray(couples.nfe)} | of_path


def _write(run: SampledRun, kept: PartialResults, num_batches: int, folder: Path) -> dict[str, Any]:
    """Write the couples and, last, the report."""
    read = [kept.read(k) for k in range(num_batches)]
    joined = {name: np.concatenate([one[name] for one in read]) for name in read[0].keys() - {"nfe"}}
    report = {"num_couples": len(joined["x0"]), "nfe": max(int(one["nfe"]) for one in read)} | run.about(run.classes)
    told = f"{report['num_couples']} couples, {report['nfe']} network calls each"
    if "straightness" in joined:
        value, stderr = mean_and_stderr(torch.from_numpy(joined.pop("straightness")))
        report |= {"straightness": value, "straightness_stderr": stderr}
        told += f", straightness {plus_minus(value, stderr)} (0 is straight)"
    (folder / "couples.json").unlink(missing_ok=True)
    save_npz(folder / COUPLES, joined)
    write_json(folder / "couples.json", report)
    kept.drop()
    say(f"{told}; wrote {COUPLES} in {folder}")
    return report
