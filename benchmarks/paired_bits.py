"""Bits of images under a trained model, with noise that is the same for every model and condition."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from data import ImageDataset
from experiment import TrainedRun
from experiment.estimators import build_estimators, model_for
from models import Cond
from sde_lib import NoiseStreams


def image_bits(
    run: TrainedRun,
    held_out: ImageDataset,
    *,
    told: Callable[[Cond | None], Cond | None] = lambda cond: cond,
    steps_per_image: int,
    batch_size: int,
    seed: int = 0,
) -> Tensor:
    """The variational bound of each image in bits, float64 [N]; image k has noise stream (seed, k).

    Args:
        run: The model.
        held_out: The images.
        told: What becomes of their condition, such as ``lambda cond: cond.without()``.
        steps_per_image: Terms of the bound that are drawn.
        batch_size: Images at once.
        seed: The seed.
    """
    config = run.config.copy_and_resolve_references()
    config.eval.update({"likelihoods": ("vlb",), "vlb_step_sampling": "low_discrepancy"})
    config.eval.vlb_steps_per_image = steps_per_image
    estimator = build_estimators(config, run.kind)["vlb"]
    model, device, bits = model_for(estimator, run.model, config), next(run.model.parameters()).device, []
    for k in tqdm(range(0, len(held_out), batch_size), desc="bits", unit="batch"):
        here = slice(k, min(k + batch_size, len(held_out)))
        x0 = run.encode(held_out.stored[here]).to(device)
        cond = told(run.conditions.tell(run.conditions.observe_in(held_out, here)))
        noise = NoiseStreams(seed, range(here.start, here.stop))
        terms = estimator(model, x0, cond=None if cond is None else cond.to(device), noise=noise)
        bits.append(terms.total.cpu() / math.log(2))
    return torch.cat(bits)
