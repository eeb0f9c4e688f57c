"""Bits/dim of a split, with standard errors: ``--mode eval``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data import ImageDataset, eval_batches, to_model_space
from likelihood import (
    FlowLikelihood,
    LikelihoodEstimator,
    LikelihoodTerms,
    RunningMean,
    VariationalBound,
    make_likelihood,
    nats_to_bits_per_dim,
)
from models import ClippedScoreModel, ScoreModel
from sde_lib import NoiseStreams
from training.build import build_dataset, check_config, pick_device
from training.config import Config
from training.images import save_bound_curve
from training.state import load_trained
from training.workdir import check_for_use, save_npz, write_json

_TERMS = ("prior", "diffusion", "reconstruction")


class TermMeans:
    """Means and standard errors of the terms over a split, in bits/dim, and of each L_t."""

    def __init__(self) -> None:
        self.total = RunningMean()
        self.per_image: list[Tensor] = []
        self.terms = {name: RunningMean() for name in _TERMS}
        self.steps: dict[int, RunningMean] = {}
        self.probe_variance = RunningMean()
        self.nfe = 0

    def update(self, terms: LikelihoodTerms) -> None:
        """Take in a batch."""
        self.total.update(terms.bits_per_dim)
        self.per_image.append(terms.bits_per_dim.cpu())
        for name, mean in self.terms.items():
            mean.update(nats_to_bits_per_dim(getattr(terms, name), terms.num_dims))
        self.nfe = max(self.nfe, terms.nfe)
        if terms.probe_nats is not None and terms.probe_nats.shape[1] > 1:
            values = nats_to_bits_per_dim(terms.probe_nats, terms.num_dims)
            self.probe_variance.update(values.var(1) / values.shape[1])
        if terms.step_index is None or terms.step_nats is None:
            return
        values = nats_to_bits_per_dim(terms.step_nats, terms.num_dims)
        for index in terms.step_index.unique().tolist():
            self.steps.setdefault(index, RunningMean()).update(values[terms.step_index == index])

    def report(self) -> dict[str, Any]:
        """What goes to ``eval/report.json``."""
        report: dict[str, Any] = {"bits_per_dim": self.total.mean, "stderr": self.total.stderr}
        report |= {name: mean.mean for name, mean in self.terms.items()}
        report |= {f"{name}_stderr": mean.stderr for name, mean in self.terms.items()}
        if self.probe_variance.count:
            # the share of stderr that more probes would take away
            report["probe_stderr"] = math.sqrt(self.probe_variance.mean / self.probe_variance.count)
        return report | {"nfe": self.nfe}


def measure(
    estimator: LikelihoodEstimator,
    model: ScoreModel,
    dataset: ImageDataset,
    *,
    batch_size: int,
    num_images: int = 0,
    seed: int = 0,
    class_conditional: bool = False,
    device: torch.device | str = "cpu",
    name: str = "eval",
) -> TermMeans:
    """Measure images of a data set, in order, the last short batch included.

    Args:
        estimator: What to measure with.
        model: The model.
        dataset: The images.
        batch_size: Images at a time; no image's value depends on it.
        num_images: How many; 0 for all.
        seed: Image k draws from stream (seed, k).
        class_conditional: Hand the labels to the model.
        device: Where the model is.
        name: What the progress bar says.

    Returns:
        The means over the images.
    """
    means, done = TermMeans(), 0
    total = num_images or len(dataset)
    with tqdm(total=total, desc=name, unit="image", dynamic_ncols=True) as bar:
        for images, labels in eval_batches(dataset, batch_size=batch_size, num_images=num_images):
            noise = NoiseStreams(seed, range(done, done + len(images)))
            x0 = to_model_space(images, dataset.num_levels).to(device)
            cond = labels.to(device) if class_conditional else None
            means.update(estimator(model, x0, cond=cond, noise=noise))
            done += len(images)
            bar.update(len(images))
            bar.set_postfix_str(f"{means.total.mean:.4f} ± {means.total.stderr:.4f} bits/dim")
    return means


def build_estimator(name: str, config: Config, dataset: ImageDataset) -> LikelihoodEstimator:
    """A likelihood estimator with the settings of ``config.eval``."""
    settings = config.eval
    if name == "vlb":
        return make_likelihood(
            name,
            num_levels=dataset.num_levels,
            num_steps=settings.vlb_num_steps or None,
            variance=settings.vlb_variance,
            steps_per_image=settings.vlb_samples_per_image or None,
        )
    if name == "vlb_continuous":
        return make_likelihood(
            name, num_levels=dataset.num_levels, steps_per_image=settings.vlb_samples_per_image or 10
        )
    if name == "ode":
        return make_likelihood(
            name,
            num_levels=dataset.num_levels,
            dequantization=settings.ode_dequantization,
            num_importance_samples=settings.ode_importance_samples,
            divergence=settings.ode_divergence,
            num_probes=settings.ode_num_probes,
            solver=settings.ode_solver,
            rtol=settings.ode_rtol,
            atol=settings.ode_atol,
            max_nfe=settings.ode_max_nfe or None,
            t_end=settings.ode_t_end or None,
        )
    return make_likelihood(name, num_levels=dataset.num_levels)


_ROWS = {
    "vlb": (("L_T prior", "prior"), ("L_t diffusion", "diffusion"), ("L_0 decoder", "reconstruction")),
    "ode": (("prior", "prior"), ("volume", "diffusion"), ("dequantization", "reconstruction")),
}


def _table(name: str, means: TermMeans, dataset: ImageDataset) -> str:
    """A small table whose three parts add up to its total."""
    lines = [
        f"{name}, {dataset.name} {dataset.split}, {means.total.count} images",
        f"{'':16}{'bits/dim':>10}{'s.e.':>10}",
    ]
    for title, key in _ROWS.get(name, _ROWS["vlb"]):
        lines.append(f"{title:16}{means.terms[key].mean:10.4f}{means.terms[key].stderr:10.4f}")
    lines.append(f"{'total':16}{means.total.mean:10.4f}{means.total.stderr:10.4f}")
    return "\n".join([*lines, f"{means.nfe} network calls an image"])


def evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Measure the averaged weights of the newest good checkpoint; print a table, write ``eval/report.json``.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.

    Returns:
        The report.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
    """
    check_config(config)
    check_for_use(workdir, config)
    device = pick_device(config)
    dataset = build_dataset(config, config.eval.split)
    estimators = {name: build_estimator(name, config, dataset) for name in config.eval.likelihoods}
    if not estimators:
        raise ValueError("config.eval.likelihoods is empty; set it to vlb")
    model, step = load_trained(config, workdir, dataset, device)
    # the flow of a clipped x0 has kinks, and is not the one that is sampled without clipping
    clipped = ClippedScoreModel(model) if config.eval.clip_x0 else model
    report: dict[str, Any] = {"dataset": dataset.name, "split": dataset.split}
    report |= {"num_images": config.eval.num_images or len(dataset), "step": step, "weights": "ema"}
    per_image: dict[str, TermMeans] = {}
    for name, estimator in estimators.items():
        means = measure(
            estimator,
            model if isinstance(estimator, FlowLikelihood) else clipped,
            dataset,
            batch_size=config.eval.batch_size,
            num_images=config.eval.num_images,
            seed=config.seed,
            class_conditional=config.model.class_conditional,
            device=device,
            name=name,
        )
        if not math.isfinite(means.total.mean):
            raise FloatingPointError(
                f"{name} of step {step} is {means.total.mean}; the network's output is not finite, "
                "or p(x) is 0 for some image: look at its checkpoint"
            )
        report[name] = means.report()
        if isinstance(estimator, VariationalBound):
            report[name] |= {
                "variance": estimator.variance,
                "clip_x0": config.eval.clip_x0,
                "num_steps": len(estimator.noisy_times(model.sde)),
                "samples_per_image": estimator.steps_per_image,
                "seed": config.seed,
            }
            curve = _bound_curve(estimator, model, means)
            report[name]["terms"] = curve
            save_bound_curve(workdir / "eval" / "bound_terms.png", curve["t"], curve["bits_per_dim"], curve["stderr"])
        if isinstance(estimator, FlowLikelihood):
            report[name] |= {
                "dequantization": estimator.dequantization,
                "importance_samples": estimator.num_importance_samples,
                "divergence": estimator.divergence,
                "num_probes": estimator.num_probes,
                "solver": estimator.solver,
                "rtol": estimator.rtol,
                "atol": estimator.atol,
                "t_end": float(estimator.noisy_times(model.sde)[0]),
                "clip_x0": False,
                "seed": config.seed,
            }
        print(_table(name, means, dataset), flush=True)
        per_image[name] = means
    if "vlb" in per_image and "ode" in per_image:
        report["gap"] = _gap(per_image["vlb"], per_image["ode"])
        print(_gap_sentence(report["gap"]), flush=True)
    arrays = {name: torch.cat(means.per_image).numpy() for name, means in per_image.items()}
    save_npz(workdir / "eval" / "per_image.npz", arrays)
    write_json(workdir / "eval" / "report.json", _without_nan(report))
    print(f"wrote {workdir / 'eval' / 'report.json'}", file=sys.stderr)
    return report


def _gap(bound: TermMeans, exact: TermMeans) -> dict[str, float]:
    """Mean and standard error, over the images, of the bound less the exact likelihood, in bits/dim."""
    gap = RunningMean()
    gap.update(torch.cat(bound.per_image) - torch.cat(exact.per_image))
    return {"bits_per_dim": gap.mean, "stderr": gap.stderr}


def _gap_sentence(gap: dict[str, float]) -> str:
    """What the difference of the two numbers says of the model."""
    value = f"gap {gap['bits_per_dim']:.4f} ± {gap['stderr']:.4f} bits/dim: "
    if gap["bits_per_dim"] < -2 * gap["stderr"]:
        return value + (
            "the reverse chain explains the data better than the same network's flow, which sums up its errors"
        )
    if gap["bits_per_dim"] > 2 * gap["stderr"]:
        return value + (
            "the flow explains the data better than the reverse chain, which pays for its Gaussian steps and variance"
        )
    return value + "the reverse chain and the flow explain the data equally well, to within the error"


def _bound_curve(estimator: VariationalBound, model: ScoreModel, means: TermMeans) -> dict[str, list[float]]:
    """Mean and standard error of each L_t that was evaluated, over t."""
    times = estimator.noisy_times(model.sde)
    steps = sorted(means.steps.items())
    return {
        "t": [float(times[index + 1]) for index, _ in steps],
        "bits_per_dim": [mean.mean for _, mean in steps],
        "stderr": [mean.stderr for _, mean in steps],
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: an unknown standard error is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
