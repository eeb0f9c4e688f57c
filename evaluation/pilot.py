"""Where a bound's terms are large, from a few images that are not measured."""

from __future__ import annotations

import torch

from data import ImageDataset, eval_batches, to_model_space
from likelihood import ContinuousBound, LikelihoodEstimator, VariationalBound
from models import ScoreModel
from sde_lib import NoiseStreams, derive_seed
from training.build import build_dataset
from training.config import Config

NUM_PILOT_IMAGES = 16
_PILOT = 0x70696C6F74


def fit_step_weights(
    config: Config, estimators: dict[str, tuple[LikelihoodEstimator, ScoreModel]], device: torch.device
) -> None:
    """Fit the weights of estimators that draw their steps by importance, on the first images of the other split.

    A function of the model, the data and the seed: an interrupted or a distributed measurement fits the same ones.

    Args:
        config: The config.
        estimators: The likelihoods by name, each with the model as it sees it.
        device: Where the models are.
    """
    pilot: ImageDataset | None = None
    for estimator, model in estimators.values():
        if not isinstance(estimator, (VariationalBound, ContinuousBound)) or estimator.step_sampling != "importance":
            continue
        if estimator.steps_per_image is None:
            continue
        pilot = pilot or build_dataset(config, "test" if config.eval.split == "train" else "train")
        count = min(NUM_PILOT_IMAGES, len(pilot))
        ((images, labels),) = eval_batches(pilot, batch_size=count, num_images=count)
        estimator.fit_steps(
            model,
            to_model_space(images, pilot.num_levels).to(device),
            cond=labels.to(device) if config.model.class_conditional else None,
            noise=NoiseStreams(derive_seed(config.seed, _PILOT), range(count)),
        )
