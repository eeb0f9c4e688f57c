"""Checkpoints of consistency_models (Song et al. 2023): its consistency models, and the EDM teachers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...backbones import ADM
from ..guided.importer import guided_sources
from ..guided.settings import plan_unet
from ..shared.plan import ModelPlan, PlannedConsistencyModel, PlannedModel
from ..shared.renaming import load_renamed
from ..shared.settings import Config, Settings
from ..shared.tensors import check_project, read_tensors

# what --training_mode says of a network: whether its answers are bound to the data at sigma_min
_ANSWERS = {
    "edm": "posterior_mean",
    "consistency_distillation": "consistency",
    "consistency_training": "consistency",
}
# how a model was trained, is run or is sampled from; its attention is in the one order whatever is said
_NOT_THE_MODEL = (
    "batch_size", "clip_denoised", "generator", "model_path", "num_samples", "s_churn", "s_noise", "s_tmax", "s_tmin",
    "sampler", "seed", "steps", "ts", "use_checkpoint", "use_fp16", "use_new_attention_order", "weight_schedule",
)  # fmt: skip


def plan_consistency(config: Config, *, num_classes: int | None = None) -> ModelPlan:
    """Plan a model from the flags of consistency_models.

    Args:
        config: See ``from_consistency``.
        num_classes: Classes of the checkpoint's table, for ``class_cond`` without a number; 1000 when None.

    Raises:
        ValueError: In one line: a setting is missing, unknown, impossible, or of a network that is not supported.
    """
    settings = Settings(config)
    answers = _ANSWERS[settings.choice("training_mode", None, tuple(_ANSWERS))]
    backbone, network = plan_unet(settings, num_classes, attention=(32, 16, 8))
    if network["learned_variance"]:
        raise ValueError("config's learn_sigma must be False, since a consistency model learns no variance; correct it")
    ends = {"sigma_min": settings.number("sigma_min", 0.002), "sigma_max": settings.number("sigma_max", 80.0)}
    settings.ignore(_NOT_THE_MODEL)
    settings.finish()
    return ModelPlan(backbone, network, {"name": "ve", **ends}, "edm", "edm1000", answers)


def from_consistency(path: Path | str, config: Config) -> PlannedModel | PlannedConsistencyModel:
    """Read a network of consistency_models (Song et al. 2023).

    The network is guided-diffusion's, whose flash attention has queries, keys and values in the order
    [(q, k, v), head, channel]. With s = sigma and d = 0.5 it answers

        f = d^2 / ((s - s_min)^2 + d^2) x_t + d (s - s_min) / sqrt(s^2 + d^2) F(x_t / sqrt(s^2 + d^2), 250 ln s),

    and the teachers the same with s_min = 0 (Appendix C).

    Args:
        path: The ``.pt`` that the project saved.
        config: Flags as in its ``launch.sh``, as text, mapping or JSON file. ``training_mode`` must be among them,
            "consistency_distillation", "consistency_training" or "edm", since no tensor says which of them it is.

    Returns:
        The model, in evaluation mode, of data in [-1, 1]: a consistency model, or of "edm" a score model.

    Raises:
        ValueError: In one line: the file or the config cannot be read, or they contradict each other.
    """
    path = Path(path)
    tensors: Mapping[str, Tensor] = read_tensors(path)
    check_project(tensors, "input_blocks.0.0.weight", "consistency_models", path=path)
    table = tensors.get("label_emb.weight")
    plan = plan_consistency(config, num_classes=None if table is None else len(table))
    model = PlannedConsistencyModel(plan).eval() if plan.answers == "consistency" else plan.build()
    network = model.backbone
    assert isinstance(network, ADM)
    load_renamed(network, tensors, guided_sources(network, new_attention_order=True), path=path)
    return model
