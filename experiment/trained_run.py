"""A trained run in a notebook: its model, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from data import AnyKind, Beside, LevelSpace, RealSpace, Space
from likelihood import nats_to_bits_per_dim
from models import Cond, ConsistencyModel, check_score_model
from runtime.files import parse_json, read_regular
from runtime.registry import choices_message
from samplers import Sampler
from sde_lib import SDE, NoiseStreams

from .build import build_sampler, named_device
from .classes import class_number
from .conditions import Conditions, build_conditions
from .config import Config
from .estimators import build_estimators, model_for
from .from_checkpoints import as_sampled_model, check_step, load_trained, trained_kind
from .guidance import load_reference, sampled_consistency_model, sampled_model, with_classes_of_classifier
from .latents.encoding import latent_model
from .saved_config import saved_config
from .text.prompts import observed_prompts


@dataclass(frozen=True)
class TrainedRun:
    """A model that was trained or imported, as ``load_run`` gives it.

    Attributes:
        model: The NetworkScoreModel, or the ConsistencyModel, in evaluation mode and without gradients of its weights.
            Samplers and likelihoods take it as it is; ``--mode sample`` guides it and bounds its x0 as
            ``config.sampling`` says.
        kind: The images or vectors that it was trained on: ``image_shape``, ``num_levels``, ``num_classes``,
            ``class_names``, ``num_values`` and ``space``.
        config: Its config, as ``config.json`` has it.
        step: Number of training steps of the checkpoint.
        report: ``eval/report.json``, of the last ``--mode eval``; {} where nothing was measured.
    """

    model: Any
    kind: AnyKind
    config: Config
    step: int
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        """The space between stored data and x0."""
        return self.kind.space

    @property
    def sde(self) -> SDE:
        """The model's SDE."""
        return self.model.sde

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one sample, or (D,) of a vector."""
        return self.kind.sample_shape

    @property
    def conditions(self) -> Conditions:
        """The conditions of the model: ``conditions.tell(conditions.observe_in(dataset, slice(8)))`` is one."""
        return build_conditions(self.config, self.kind)

    def encode(self, stored: Tensor) -> Tensor:
        """Turn data into x0, float32: grey levels, integers [N, C, H, W], or vectors [N, D]."""
        return self.kind.space.encode(stored)

    def decode(self, x0: Tensor) -> Tensor:
        """Data of samples x0: the nearest grey levels 0 .. ``kind.num_levels`` - 1, uint8, or vectors, float64."""
        return self.kind.space.decode(x0)

    def sample(
        self,
        count: int,
        *,
        label: int | str | None = None,
        cond: Cond | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Draw samples, as ``--mode sample`` does: sample k from the noise stream (seed, k).

        Args:
            count: The number of samples, drawn at once.
            label: The class of all of them, by number or name, of a class-conditional model; None for all in turn.
            cond: The condition of each sample in place of ``label``, for models that are told more than a class; see
                ``conditions``.
            sampler: The sampler; None for the one of the run's config.
            seed: The seed.

        Returns:
            Grey levels, uint8 [count, C, H, W], or vectors, float64 [count, D], on the CPU.

        Raises:
            ValueError: If there is no such class, or the model knows no classes.
        """
        sampler, noise = sampler or build_sampler(self.config), NoiseStreams(seed, range(count))
        device = next(self.model.parameters()).device
        x_T = sampler.prior_sample(self.sde, self.sample_shape, noise, device=device)
        cond = self._labels(count, label) if cond is None else cond
        cond = None if cond is None else cond.to(device)
        result = sampler.sample(self.sampled_model(sampler), x_T, cond=cond, noise=noise)
        return self.decode(result.x0.cpu())

    def sampled_model(self, sampler: Sampler, config: Config | None = None) -> Any:
        """The network with the guidance and the bounds of x0 that a config asks for.

        Args:
            sampler: The sampler, whose grid CFG++ needs.
            config: The config; None for the run's own.

        Raises:
            ValueError: In one line: a reference that cannot be, or guidance of a model without a null condition.
        """
        config = config or self.config
        if isinstance(self.model, ConsistencyModel):
            return sampled_consistency_model(config, self.model, self.kind)
        reference = load_reference(config, self.kind, next(self.model.parameters()).device)
        return sampled_model(config, self.model, self.kind, sampler, reference and reference.model)

    def bits_per_dim(
        self,
        data: Tensor,
        *,
        labels: Tensor | None = None,
        values: Tensor | None = None,
        paired: Tensor | None = None,
        captions: Sequence[str] | None = None,
        likelihood: str | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Measure data as ``--mode eval`` does: datum k with the noise stream (seed, k), by the config's settings.

        Where the config draws some of the bound's steps by importance, which takes a pilot run over training data, they
        are drawn in strata here: unbiased too, with a larger standard error.
        ``likelihood.mean_and_stderr`` gives the mean of the result and its standard error.

        Args:
            data: Grey levels, integers [N, C, H, W], or vectors [N, D].
            labels: Classes, int64 [N], of a class-conditional model.
            values: Values, floats [N, K], of a model that is told those of its data set.
            paired: Images beside the data, uint8 [N, c, H, W], of a model that is told them.
            captions: Their captions, of a model that is told words.
            likelihood: "vlb", "vlb_continuous" or "ode"; None for the first of ``config.eval.likelihoods``.
            seed: The seed; None for the config's.
            progress: Show a progress bar.

        Returns:
            Bits/dim of each datum, or an upper bound of it, float64 [N], on the CPU.

        Raises:
            ValueError: If one of these is missing or not wanted, or the likelihood is not for such data.
        """
        check_score_model(self.model)
        if (labels is None) == bool(self.config.model.class_conditional):
            wanted = "labels, one a datum" if labels is None else "no labels; the model is told no class"
            raise ValueError(f"the model needs {wanted}")
        shapes = {"values": "floats [N, K]", "paired": "uint8 [N, c, H, W]", "text": "captions, one a datum"}
        every = {"values": values, "paired": paired, "text": captions}
        for name, given in every.items():
            if (given is None) == (name in self.config.data.get("condition", ())):
                wanted = f"{name}, {shapes[name]}" if given is None else f"no {name}; it is told none"
                raise ValueError(f"the model needs {wanted}")
        if not len(data) or any(len(one) != len(data) for one in (labels, *every.values()) if one is not None):
            raise ValueError(
                f"data, labels and values must be as many, and one at least, got {len(data)} data; check them"
            )
        config = self.config.copy_and_resolve_references()
        config.eval.likelihoods = (likelihood or config.eval.likelihoods[0],)
        if config.eval.vlb_step_sampling == "importance":
            config.eval.vlb_step_sampling = "stratified"
        ((_, estimator),) = build_estimators(config, self.kind).items()
        model: Any = model_for(estimator, self.model, config)
        latents = getattr(self.kind, "latents", None)
        model = model if latents is None else latent_model(model, latents)
        device = next(self.model.parameters()).device
        space = self.kind.space if latents is None else LevelSpace(latents.num_pixel_levels)
        texts = {} if captions is None else observed_prompts(self.config, self.conditions, captions)[0].texts
        beside, bits = Beside(values, paired, texts), []
        for begin in tqdm(range(0, len(data), config.eval.batch_size), unit="batch", disable=not progress):
            here = slice(begin, min(begin + config.eval.batch_size, len(data)))
            told = (data if labels is None else labels)[here]
            observed = self.conditions.observe(data[here], told, beside[here])
            cond = self.conditions.tell(observed)
            noise = NoiseStreams(config.seed if seed is None else seed, range(here.start, here.stop))
            terms = estimator(
                model, space.encode(data[here]).to(device), cond=None if cond is None else cond.to(device), noise=noise
            )
            volume = space.log_volume if isinstance(space, RealSpace) else 0.0
            bits.append(nats_to_bits_per_dim(terms.total + volume, terms.num_dims).cpu())
        return torch.cat(bits)

    def _labels(self, count: int, label: int | str | None) -> Tensor | None:
        if not self.conditions.only_labels:
            raise ValueError("the model is told more than a class; pass cond, as from run.conditions")
        if not (self.config.model.class_conditional or self.config.sampling.classifier):
            if label is not None:
                raise ValueError(f"label={label!r} needs a class-conditional model, got one without; leave it out")
            return None
        kind = with_classes_of_classifier(self.config, self.kind)
        if label is None:
            return torch.arange(count) % kind.num_classes
        return torch.full((count,), class_number(label, kind.num_classes, kind.class_names))


def load_run(workdir: str | Path, *, device: str = "auto", weights: str = "ema", step: int | None = None) -> TrainedRun:
    """Load a run from its work directory; its training data need not be there, and no code in the directory is run.

    Args:
        workdir: The work directory.
        device: Where the model goes, such as "cpu" or "cuda:0"; "auto" takes a GPU if there is one.
        weights: "ema", the average of the weights, which the commands use, or "raw", the last ones.
        step: The step of the checkpoint; None for the newest that is good.

    Returns:
        The run.

    Raises:
        ValueError: In one line: there is no run, no such checkpoint, or none that can be used. A run with an SDE of
            a plugin needs the plugin imported before.

    Example:
        >>> run = load_run("runs/vp/digits")
        >>> images = run.sample(8, sampler=make_sampler("ddim", num_steps=50))
    """
    if weights not in ("ema", "raw"):
        raise ValueError(choices_message("weights", weights, ["ema", "raw"]))
    workdir = Path(workdir).expanduser()
    config = saved_config(workdir)
    check_step(workdir, step)
    place = named_device(device)
    kind = trained_kind(config, workdir, place)
    model, step = load_trained(config, workdir, kind, place, weights=weights, step=step)
    return TrainedRun(as_sampled_model(model, workdir), kind, config, step, _report(workdir))


def _report(workdir: Path) -> dict[str, Any]:
    try:
        return parse_json(read_regular(workdir / "eval" / "report.json"))
    except (OSError, ValueError):
        return {}
