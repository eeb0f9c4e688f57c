"""The config of a run from its work directory, whatever version wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .config import Config
from .network import model_in_full
from .workdir import read_whole_config

# settings that config.json lacks where an earlier version wrote it
DEFAULTS: dict[str, dict[str, Any]] = {
    "sampling": {
        "sampler": "ancestral", "num_steps": 1000, "grid": "uniform", "options": "", "clip_x0": True,
        "threshold_x0": 0.0, "guidance_weight": 1.0, "guidance_schedule": "constant", "guidance_interval": (),
        "negative_prompt": "", "guidance_rescale": 0.0, "guidance_reference": "", "guidance_reference_weights": "ema",
        "classifier": "", "classifier_scale": 1.0,
    },
    "eval": {
        "likelihoods": ("vlb", "ode"), "batch_size": 128, "clip_x0": True, "vlb_variance": "auto", "vlb_num_steps": 0,
        "vlb_grid": "uniform", "vlb_steps_per_image": 0, "vlb_step_sampling": "importance",
        "ode_dequantization": "decoder", "ode_importance_samples": 1, "ode_divergence": "rademacher",
        "ode_num_probes": 1, "ode_solver": "adams", "ode_rtol": 1e-5, "ode_atol": 1e-5, "ode_num_steps": 0,
        "ode_grid": "log_snr", "ode_max_nfe": 10_000, "ode_t_end": 0.0,
    },
}  # fmt: skip


def saved_config(workdir: Path) -> Config:
    """The config of a work directory, with the keys that its model is used by and that later versions added.

    Raises:
        ValueError: If there is no run, or its config cannot be read.
    """
    saved = read_whole_config(workdir)
    if saved is None:
        raise ValueError(f"{workdir} holds no trained run; name the work directory of one")
    saved = {name: {} for name in DEFAULTS} | saved
    if not all(isinstance(saved.get(section), dict) for section in ("data", "model", "sde", *DEFAULTS)):
        raise ValueError(f"{workdir / 'config.json'} is damaged (it lacks a section); restore it")
    whole = {name: defaults | saved[name] for name, defaults in DEFAULTS.items()}
    config = ConfigDict(_with_tuples({**saved, **whole, "model": model_in_full(saved["model"])}))
    config.lock()
    return config


def _with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, dict):
        return {key: _with_tuples(one) for key, one in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
