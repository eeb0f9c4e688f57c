"""Importance of a bound's terms, from a few images that are not measured."""

from __future__ import annotations

import torch

from data import AnyDataset
from experiment.build import build_dataset
from experiment.conditions import build_conditions
from experiment.config import Config
from experiment.text.frozen import told_alike
from likelihood import ContinuousBound, LikelihoodEstimator, VariationalBound
from models import ScoreModel
from runtime.processes.ranks import Ranks
from sde_lib import NoiseStreams, derive_seed

NUM_PILOT_IMAGES = 16
_PILOT = 0x70696C6F74


def fit_step_weights(
    config: Config,
    estimators: dict[str, tuple[LikelihoodEstimator, ScoreModel]],
    measured: AnyDataset,
    device: torch.device,
    ranks: Ranks,
    *,
    num_classes: int = 0,
) -> dict[str, list[float]]:
    """Fit the weights of estimators that draw their steps by importance, on the first images of the other split.

    Rank 0 fits them for all processes.

    Args:
        config: The config.
        estimators: The likelihoods by name, each with the model as it sees it.
        measured: The split that is measured, as the model knows its channels and classes.
        device: Where the models are.
        ranks: The processes.
        num_classes: Classes that the likelihoods shall tell apart; 0 for none.

    Returns:
        The weights of those that have them, by name.
    """
    drawn = {
        name: estimator
        for name, (estimator, model) in estimators.items()
        if isinstance(estimator, (VariationalBound, ContinuousBound)) and _draws(estimator, model)
    }

    def fit() -> dict[str, list[float]]:
        other = _other_split(config, measured)
        count = min(NUM_PILOT_IMAGES, len(other))
        pilot = told_alike(config, other.subset(count), measured)
        conditions = build_conditions(config, pilot.kind)
        cond = conditions.tell(conditions.observe_in(pilot, slice(count)))
        fitted = {
            name: estimator.fit_steps(
                estimators[name][1],
                pilot.space.encode(pilot.stored).to(device),
                cond=None if cond is None else cond.to(device),
                noise=NoiseStreams(derive_seed(config.seed, _PILOT), range(count)),
                num_classes=num_classes,
            )
            for name, estimator in drawn.items()
        }
        return {name: weights.tolist() for name, weights in fitted.items()}

    if not drawn:
        return {}
    weights: dict[str, list[float]] = ranks.share("step weights", fit)
    for name, estimator in drawn.items():
        estimator.step_weights = torch.tensor(weights[name], dtype=torch.float64)
    return weights


def _draws(estimator: VariationalBound | ContinuousBound, model: ScoreModel) -> bool:
    """Tell a bound that draws its steps by importance; a chain with no more steps than draws takes them all."""
    if estimator.step_sampling != "importance" or estimator.steps_per_image is None:
        return False
    every = isinstance(estimator, VariationalBound)
    return not every or estimator.steps_per_image < len(estimator.noisy_times(model.sde)) - 1


def _other_split(config: Config, measured: AnyDataset) -> AnyDataset:
    split = "test" if measured.split == "train" else "train"
    other = build_dataset(config, split, measured.image_shape[0] if measured.name == "folder" else None)
    named = config.model.class_conditional and measured.class_names
    return other.with_class_order(measured.class_names) if named else other
