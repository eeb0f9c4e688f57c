"""Every leaf of the config, changed, arrives in the object or the call that uses it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_calls import Bench
from control_readers import BASE, CONTROL, NEEDS, based, controlled, distilling, keeps_hint, stem_widths, taught
from distillation_readers import MATCHED, STAGED, of_loss
from settings_readers import (
    Read,
    answered,
    built_network,
    by_class,
    cascade,
    data,
    device,
    drawn,
    edited,
    ema_weight,
    encoded_by,
    estimators,
    gradient_norm,
    group,
    guidance,
    guided,
    in_network,
    interpolated,
    mode_of,
    negative_words,
    number_of,
    option,
    pilot,
    plugins,
    preview,
    rate,
    reading,
    reference,
    restored,
    sample_set,
    sampled_model,
    sampler,
    seen,
    seen_model,
    shared,
    source,
    split,
    stage_weights,
    stages,
    text_encoder,
    told,
    when,
)
from tiny import TINY
from training_runs import ROOT, digits_like

from configs.default import get_default_config
from evaluation.step_weights import _PILOT
from experiment.build import bound_x0, build_dataset, build_model
from experiment.config import Config, flatten, load_config
from sde_lib import derive_seed

LEAVES = [key for key, _ in flatten(get_default_config())]


CHANGED = object()  # stands for any value but that of the default


@dataclass(frozen=True)
class Arrival:
    """A change of a leaf, and where it is to be seen.

    Attributes:
        value: The new value, as on the command line.
        expected: What each of ``reads`` then gives, in turn.
        reads: Looks into the objects that are built from a config.
        needs: Other settings, without which the leaf has no effect; before the change too.
    """

    value: str
    expected: Any
    reads: list[Read]
    needs: tuple[str, ...] = ()


def _one(value: str, expected: Any, *reads: Read, needs: tuple[str, ...] = ()) -> Arrival:
    return Arrival(value, [expected] * len(reads), list(reads), needs)


ODE = ("eval.likelihoods=ode", "eval.ode_rtol=1e-3")
HEUN = (*ODE, "eval.ode_solver=heun", "eval.ode_num_steps=4")
IMPORT = ("source.name=edm", "source.checkpoint=weights.pt")
CONDITIONAL = ("model.class_conditional=True",)
TOLD_PAIRED = ("data.condition=paired",)
TOLD_IMAGE = ("data.condition=lowres",)
NOISY_IMAGE = (*TOLD_IMAGE, "model.condition_noise_t=0.5")
CLIPS = ("data.dataset=moving_digits", "data.options=num_clips=20")
HALVED = ("model.attention_resolutions=",)
DRAWN = ("eval.vlb_num_steps=4", "eval.vlb_steps_per_image=2")


FLOW = (
    "sampling.sampler=probability_flow", "sampling.options=solver=euler", "sampling.num_steps=9", "sampling.classes=3",
    "model.class_conditional=True", "model.condition_dropout=0.5",
)  # fmt: skip
DISTILLED = ("training.loss=consistency_distillation", "model.answers=consistency")
GUIDED = ("model.class_conditional=True", "model.condition_dropout=0.5", "sampling.guidance_weight=2")


def network(key: str, value: str, expected: Any, *needs: str) -> Arrival:
    return Arrival(value, [expected, CHANGED], in_network(key), needs)


ARRIVALS: dict[str, Arrival | list[Arrival]] = {
    "seed": [
        _one("7", CHANGED, lambda _, config: float(sum(p.detach().sum() for p in built_network(config).parameters()))),
        _one("7", 7, option(lambda trainer: trainer.options.seed), drawn("seed"), split("seed"), preview("seed")),
        _one("7", CHANGED, option(lambda trainer: float(trainer._batches.at(0).eps.sum()))),
        _one("7", CHANGED, option(lambda trainer: float(trainer._batches.at(0).samples[..., 0].sum()))),
        _one("7", derive_seed(7, _PILOT), lambda *of: pilot("noise")(*of).seed, needs=DRAWN),
    ],
    "device": _one("cuda:1", "cuda:1", device("train"), device("sample"), device("eval")),
    "plugins": _one(
        "mine.py",
        ("mine.py",),
        plugins,
    ),
    "source.name": _one(
        "ddpm", (("other.pt",), {}), source, needs=("source.name=edm", "source.checkpoint=other.pt")
    ),
    "source.checkpoint": _one("other.pt", "other.pt", lambda *of: of[0].imported(of[1], "edm").args[0], needs=IMPORT),
    "source.config": _one("mine", "mine", lambda *of: of[0].imported(of[1], "edm").kwargs.get("config"), needs=IMPORT),
    "source.weights": _one(
        "raw",
        "raw",
        lambda *of: of[0].imported(of[1], "score_sde").kwargs["weights"],
        needs=("source.name=score_sde", IMPORT[1]),
    ),
    "source.preconditioning": _one(
        "ve", "ve", lambda *of: of[0].imported(of[1], "edm").kwargs["preconditioning"], needs=IMPORT
    ),
    "sde.name": _one("vp_cosine", "CosineVP", option(lambda trainer: type(trainer.state.model.sde).__name__)),
    "data.dataset": _one("mnist", "mnist", data("train", 0), data("eval", 0)),
    "data.root": _one("/mine", "/mine", data("train", "root"), data("eval", "root")),
    "data.options": _one("a=1", {"a": 1}, data("train", "options"), data("eval", "options")),
    "data.image_size": _one("(8,16)", (8, 16), data("train", "image_size"), data("eval", "image_size")),
    "data.channels": _one("3", 3, data("train", "channels"), data("eval", "channels")),
    "data.random_flip": Arrival(
        "True",
        [True, CHANGED],
        [
            option(lambda trainer: trainer.options.random_flip),
            option(lambda trainer: float(trainer._batches.at(0).samples[..., 0].sum())),
        ],
    ),
    "data.couples": _one(
        "runs/other",
        Path("runs/other"),
        lambda bench, config: bench.train(config, "training.job.read_couples").args[0],
        needs=("training.loss=reflow", "model.answers=flow", "data.couples=runs/one"),
    ),
    "data.first_stage": _one("runs/other", "runs/other", encoded_by),
    "data.text_encoder": _one("texts/bert", ("texts/bert", {}), text_encoder),
    "data.text_options": _one("max_length=9", (".", {"max_length": 9}), text_encoder),
    "data.downscale": _one("2", (1, 4, 4), option(lambda trainer: trainer.state.kind.image_shape), needs=HALVED),
    "data.given_frames": _one(
        "2", (1, 6, 16, 16), lambda _, config: build_dataset(config, "test").image_shape, needs=CLIPS
    ),
    "data.condition": [
        _one("lowres,ink", {"cond_channels": 1, "cond_values": 1}, told("network_options")),
        _one("lowres", 1, lambda _, config: built_network(config).options["cond_channels"]),
        _one("lowres", ["LowResolution"], lambda *of: [type(one).__name__ for one in split("conditions")(*of).images]),
        _one("lowres", True, lambda *of: pilot("cond")(*of) is not None, needs=DRAWN),
    ],
    "data.condition_options": _one(
        "factor=4", 4, lambda *of: told("images")(*of)[0].factor, needs=("data.condition=lowres",)
    ),
    "model.backbone": _one("adm", "ADM", lambda _, config: type(built_network(config)).__name__),
    "model.parameterization": Arrival(
        "v", ["VParameterization", CHANGED], [lambda *of: type(reading(of[1])).__name__, lambda *of: answered(of[1])]
    ),
    "model.time_input": _one("log_snr", CHANGED, lambda *of: answered(of[1])),
    "model.data_std": [
        Arrival(
            "0.25",
            [0.25, CHANGED, 0.25],
            [
                lambda *of: getattr(reading(of[1]), "data_std", None),
                lambda *of: answered(of[1]),
                option(lambda trainer: trainer.state.loss.data_std),
            ],
            ("model.parameterization=edm",),
        ),
    ],
    "model.channels": network("channels", "24", 24),
    "model.channel_mult": network("channel_mult", "(1,2)", (1, 2)),
    "model.num_res_blocks": network("num_res_blocks", "2", 2),
    "model.attention_resolutions": network("attention_resolutions", "(8,)", (8,), "model.attention_resolutions=(4,)"),
    "model.num_heads": network("num_heads", "2", 2, "model.attention_resolutions=(8,)"),
    "model.head_channels": network("head_channels", "8", 8, "model.attention_resolutions=(8,)"),
    "model.dropout": network("dropout", "0.5", 0.5),
    "model.scale_shift_norm": network("scale_shift_norm", "True", True),
    "model.norm_groups": network("norm_groups", "4", 4),
    "model.norm_eps": network("norm_eps", "1e-2", 1e-2),
    "model.embedding": network("embedding", "cos_first", "cos_first"),
    "model.symmetric_downsample": network("symmetric_downsample", "True", True),
    "model.input_frequencies": network("input_frequencies", "(1,2)", (1, 2)),
    "model.learned_variance": Arrival(
        "True",
        [True, True, True],
        [
            lambda _, config: built_network(config).options["learned_variance"],
            lambda _, config: build_model(config, digits_like(1).kind).learned_variance,
            option(lambda trainer: trainer.state.model.learned_variance),
        ],
        ("training.loss=vlb",),
    ),
    "model.dequantizer": _one(
        "True", True, option(lambda trainer: trainer.state.model.dequantizer is not None),
        needs=("training.loss=dequantized",),
    ),
    "model.class_conditional": [
        Arrival("True", [10, CHANGED], in_network("num_classes")),
        _one(
            "True", True, told("labels"), lambda *of: preview("cond")(*of) is not None,
            lambda *of: split("conditions")(*of).labels,
        ),
        _one("True", True, lambda *of: drawn("cond")(*of) is not None),
        _one("True", True, lambda *of: pilot("cond")(*of) is not None, needs=DRAWN),
    ],
    "model.condition_dropout": [
        _one("0.5", 0.5, option(lambda trainer: trainer.options.condition_dropout), needs=CONDITIONAL),
        _one("0.5", True, lambda _, config: built_network(config).null_condition, needs=CONDITIONAL),
    ],
    "model.part_dropout": [
        _one("class=0.5", {"class": 0.5}, option(lambda trainer: trainer.options.part_dropout), needs=CONDITIONAL),
        _one("class=0.5", True, lambda _, config: built_network(config).null_condition, needs=CONDITIONAL),
    ],
    "model.condition_noise_t": [
        _one("0.5", 0.5, option(lambda trainer: trainer.options.condition_noise_t), needs=TOLD_IMAGE),
        _one("0.5", True, option(lambda trainer: trainer._batches.at(0).condition_eps is not None), needs=TOLD_IMAGE),
    ],
    "training.num_steps": Arrival(
        "7", [7, [3, 6, 7]], [option(lambda trainer: trainer.options.num_steps), when("save")]
    ),
    "training.batch_size": _one(
        "9", 9, option(lambda trainer: len(trainer._batches.at(0).samples)),
        option(lambda trainer: trainer.options.batch_size),
    ),
    "training.loss": _one("dsm", "DenoisingScoreMatching", option(lambda trainer: type(trainer.state.loss).__name__)),
    "training.weighting": _one("x0", "x0", option(lambda trainer: trainer.state.loss.weighting)),
    "training.step_sampling": _one("importance", "LossHistory", option(lambda one: type(one.state.times).__name__)),
    "training.precision": _one("bf16", "bf16", mode_of("train", 0)),
    "training.compile": _one("on", "on", mode_of("train", 1)),
    "training.accumulation_steps": _one("4", 4, option(lambda trainer: len(trainer._slice.micro_batches))),
    "training.gradient_checkpointing": _one(
        "True", True, option(lambda trainer: trainer.state.model.backbone.gradient_checkpointing)
    ),
    "training.sharding": _one(
        "fsdp", "fsdp", lambda *of: of[0].train(of[1], "training.job.Communication").kwargs["sharding"]
    ),
    "training.explosion_factor": _one("50", 50.0, option(lambda trainer: trainer.state.bad_steps.explosion_factor)),
    "training.max_bad_steps": _one("4", 4, option(lambda trainer: trainer.state.bad_steps.max_bad_steps)),
    "training.ema_decay": Arrival(
        "0.05", [0.05, 0.05], [option(lambda trainer: trainer.state.ema.decay), option(ema_weight)]
    ),
    "training.ema_profiles": _one(
        "0.05,0.2", [0.05, 0.2], option(lambda trainer: [one.sigma_rel for one in trainer.state.profiles])
    ),
    "training.ema_snapshot_every": _one("4", 4, option(lambda trainer: trainer.options.ema_snapshot_every)),
    "training.grad_clip": _one("1e-3", 1e-3, lambda *of: gradient_norm(of[0].stepped(of[1]))),
    "training.checkpoint_every": _one("4", [4, 6], when("save")),
    "training.keep_checkpoints": _one("2", 2, option(lambda trainer: trainer.options.keep_checkpoints)),
    "training.log_every": _one("5", [5, 6], when("_log_numbers")),
    "training.sample_every": _one("5", [5], when("_draw_samples")),
    "optim.name": _one("adamw", "AdamW", option(lambda trainer: type(trainer.state.optimizer).__name__)),
    "optim.learning_rate": _one("0.5", 0.5, rate),
    "optim.beta1": _one("0.5", 0.5, group("betas", 0)),
    "optim.beta2": _one("0.5", 0.5, group("betas", 1)),
    "optim.eps": _one("1e-3", 1e-3, group("eps")),
    "optim.weight_decay": _one("0.25", 0.25, group("weight_decay")),
    "optim.warmup_steps": _one("12", round(1e-3 * 3 / 12, 12), rate),
    "optim.decay_steps": _one("8", round(1e-3 * (1 + math.cos(math.pi / 4)) / 2, 12), rate),
    "sampling.sampler": _one("ddim", "DDIMSampler", lambda *of: type(of[0].sample(of[1]).args[0]).__name__),
    "sampling.num_steps": _one("4", 4, sampler("num_steps")),
    "sampling.num_samples": _one("4", 4, sample_set("num_samples")),
    "sampling.batch_size": Arrival("2", [2, range(2)], [sample_set("batch_size"), drawn(2)]),
    "sampling.classes": _one("3,7", [3, 7, 3], lambda *of: drawn("cond")(*of)[:3].tolist(), needs=CONDITIONAL),
    "sampling.condition_split": _one("train", "train", data("sample", "split"), needs=TOLD_IMAGE),
    "sampling.condition_noise_t": _one(
        "0.2", True, lambda *of: drawn("cond")(*of).image_log_snr is not None, needs=NOISY_IMAGE
    ),
    "sampling.grid": _one("quadratic", "quadratic", sampler("grid")),
    "sampling.options": _one("eta=0.5", 0.5, sampler("eta"), needs=("sampling.sampler=ddim",)),
    "sampling.classifier": _one("runs/other", "runs/other", guided("classifier")),
    "sampling.classifier_scale": _one("3.0", 3.0, guided("scale"), needs=("sampling.classifier=runs/other",)),
    "sampling.clip_x0": _one("False", "NetworkScoreModel", sampled_model),
    "sampling.threshold_x0": Arrival(
        "0.9",
        ["ThresholdedScoreModel", 0.9],
        [
            sampled_model,
            lambda _, config: getattr(
                bound_x0(config, build_model(config, digits_like(1).kind), digits_like(1).kind), "quantile", None
            ),
        ],
    ),
    "sampling.guidance_weight": _one("3", 3.0, guidance("weight"), needs=GUIDED[:2]),
    "sampling.guidance_schedule": _one(
        "cfg++", "CFGPlusPlusWeight", lambda *of: type(guidance("weight")(*of)).__name__, needs=GUIDED
    ),
    "sampling.guidance_interval": _one("0.2,3", (0.2, 3.0), guidance("interval"), needs=GUIDED),
    "sampling.negative_prompt": _one("red", [2, 0], negative_words, needs=("data.condition=text",)),
    "sampling.guidance_rescale": _one("0.7", 0.7, guidance("rescale"), needs=GUIDED),
    "sampling.guidance_reference": _one("runs/x@7", ("runs/x", "ema", 7), reference, needs=GUIDED),
    "sampling.guidance_reference_weights": _one(
        "raw", ("runs/x", "raw", None), reference, needs=(*GUIDED, "sampling.guidance_reference=runs/x")
    ),
    "sampling.precision": _one("bf16", "bf16", mode_of("sample", 0)),
    "sampling.compile": _one("on", "on", mode_of("sample", 1)),
    "sampling.png_folder": _one("True", True, sample_set("pngs")),
    "sampling.record_trajectory": _one("True", 16, drawn("num_trajectories")),
    "eval.likelihoods": _one("vlb,vlb_continuous", ["vlb", "vlb_continuous"], estimators),
    "eval.num_images": _one("6", 6, split("num_images")),
    "eval.batch_size": _one("5", 5, split("batch_size"), lambda *of: of[0].eval(of[1]).args[0].size(0)),
    "eval.split": _one("train", "train", data("eval", "split")),
    "eval.precision": _one("bf16", "bf16", mode_of("eval", 0)),
    "eval.compile": _one("on", "on", mode_of("eval", 1)),
    "eval.clip_x0": _one("False", "NetworkScoreModel", seen_model),
    "eval.vlb_variance": _one("large", "large", seen("variance")),
    "eval.vlb_num_steps": _one("7", 7, seen("num_steps")),
    "eval.vlb_grid": _one("quadratic", "quadratic", seen("grid")),
    "eval.vlb_steps_per_image": [
        _one("3", 3, seen("steps_per_image"), needs=("eval.vlb_step_sampling=uniform",)),
        _one(
            "3", 3, seen("steps_per_image", "vlb_continuous"),
            needs=("eval.vlb_step_sampling=uniform", "eval.likelihoods=vlb_continuous"),
        ),
    ],
    "eval.vlb_step_sampling": [
        _one("uniform", "uniform", seen("step_sampling")),
        _one("uniform", "uniform", seen("step_sampling", "vlb_continuous"), needs=("eval.likelihoods=vlb_continuous",)),
    ],
    "eval.ode_dequantization": _one("uniform", "uniform", seen("dequantization", "ode"), needs=ODE),
    "eval.ode_importance_samples": _one(
        "3", 3, seen("num_importance_samples", "ode"), needs=(*ODE, "eval.ode_divergence=exact")
    ),
    "eval.ode_divergence": _one("gaussian", "gaussian", seen("divergence", "ode"), needs=ODE),
    "eval.ode_num_probes": _one("3", 3, seen("num_probes", "ode"), needs=ODE),
    "eval.ode_solver": _one("dopri5", "dopri5", seen("solver.name", "ode"), needs=ODE),
    "eval.ode_rtol": _one("1e-2", 1e-2, seen("solver.rtol", "ode"), needs=ODE),
    "eval.ode_atol": _one("1e-2", 1e-2, seen("solver.atol", "ode"), needs=ODE),
    "eval.ode_num_steps": _one("5", 5, seen("solver.num_steps", "ode"), needs=HEUN),
    "eval.ode_grid": _one("quadratic", "quadratic", seen("solver.grid", "ode"), needs=HEUN),
    "eval.ode_max_nfe": _one("77", 77, seen("solver.max_nfe", "ode"), needs=ODE),
    "restore.operator": _one("blur", "CircularBlur", restored(lambda method, *_: type(method.operator).__name__)),
    "restore.operator_options": _one("hidden=left", "left", restored(lambda method, *_: method.operator.hidden)),
    "restore.noise_std": _one(
        "0.3", 0.3, restored(lambda method, *_: method.noise_std),
        restored(lambda _, model, *__: model.model.noise_std),
        lambda bench, config: bench.restore(config, "commands.ensembles.restore.measure").kwargs["noise_std"],
    ),
    "restore.method": _one("ddnm", "DDNMScoreModel", restored(lambda _, model, *__: type(model.model).__name__)),
    "restore.method_options": _one("iterations=2", 2, restored(lambda _, model, *__: model.model.iterations)),
    "restore.num_images": _one(
        "3", 3, lambda bench, config: len(bench.restore(config, "commands.ensembles.restore.measure").args[1])
    ),
    "restore.samples_per_image": _one("2", [(0, 0), (0, 1), (1, 0)], restored(lambda *of: of[3])),
    "restore.split": _one("train", "train", data("restore", "split")),
    "segment.num_images": _one(
        "3", 3, lambda *of: of[0].segment(of[1], "commands.ensembles.segment.Ensembles").args[0], needs=TOLD_PAIRED
    ),
    "segment.samples_per_image": _one(
        "2", [(0, 0), (0, 1), (1, 0)], lambda *of: of[0].segment(of[1]).args[2], needs=TOLD_PAIRED
    ),
    "segment.split": _one("train", "train", data("segment", "split"), needs=TOLD_PAIRED),
    "interpolate.images": _one(
        "3,5", [[3], [5]],
        interpolated(lambda _, __, x0, *___, **____: [[number_of(image) for image in end] for end in x0]),
    ),
    "interpolate.split": _one("train", "train", data("interpolate", "split")),
    "interpolate.latents": _one("q", None, interpolated(lambda *_, encoder, **__: encoder)),
    "interpolate.way": _one("circle", "circle", interpolated(lambda *_, way, **__: way)),
    "interpolate.weights": _one("0.3", (0.0, 0.3, 1.0), interpolated(lambda *of, **_: of[4])),
    "interpolate.times": _one("0.6,0.2", 0.6, interpolated(lambda *of, **_: of[3])),
    "edit.method": _one(
        "counterfactual", "Counterfactual", edited(lambda _, method, *__: type(method).__name__), needs=FLOW
    ),
    "edit.method_options": _one(
        "own_class=False", False, edited(lambda _, method, *__: method.own_class), needs=(*FLOW, "edit.method=invert")
    ),
    "edit.t": _one("0.6", 0.6, edited(lambda *of: of[5])),
    "edit.noise_ratio": _one("0.5", 0.5, edited(lambda run, *of: round(float(
        (-0.5 * run.model.sde.log_snr(torch.tensor([of[4]], dtype=torch.float64))).exp()), 6))),
    "edit.num_images": _one("3", 3, edited(lambda *of: len(of[2].x0))),
    "edit.split": _one("train", "train", data("edit", "split")),
    "progressive.times": _one("0.8,0.2", (0.8, 0.2), lambda bench, config: bench.progressive(config).args[3]),
    "progressive.num_times": _one("2", (1.0, 0.2), lambda bench, config: bench.progressive(config).args[3]),
    "progressive.num_images": _one(
        "2", 2, lambda bench, config: bench.progressive(
            config, "commands.latents.progressive.predictions_along").args[1].shape[1],
    ),
    "progressive.split": _one("train", "train", data("progressive", "split")),
    "progressive.share_at": _one("0.6,0.3", 0.6, shared(lambda _, __, ___, t, **____: t)),
    "progressive.shared_images": _one(
        "1", [0], shared(lambda *_, numbers, **__: numbers), needs=("sampling.batch_size=8",)
    ),
    "progressive.shared_samples": _one("2", 2, shared(lambda *_, num_samples, **__: num_samples)),
    "cascade.stages": _one("vp/digits_2,vp/digits_4_sr", ["digits_2", "digits_4_sr"], stages),
    "cascade.noise_t": _one("0.1,0.2", (0.1, 0.2), cascade("noise_t")),
    "cascade.guidance_weight": _one("2,1.5", [2.0, 1.5], stage_weights),
    "cascade.truncated": _one("True", True, cascade("truncated")),
    "control.base": _one(str(BASE), BASE, based),
    "control.hint_widths": _one("4", [4], stem_widths, needs=NEEDS),
    "control.scale": _one("0.5", [0.5], controlled(lambda network: network.scales), needs=NEEDS),
    "control.decay": _one("0.5", 0.5, controlled(lambda network: network.decay), needs=NEEDS),
    "control.also": _one(f"{CONTROL}:0.5", [1.0, 0.5], controlled(lambda network: network.scales), needs=NEEDS),
    "control.guided": _one(
        "conditional", False, keeps_hint, needs=(*NEEDS, "sampling.guidance_weight=2", "sampling.guidance_reference=a")
    ),
    "distillation.stages": _one("8,4", (8, 4), of_loss(lambda loss: loss.stages.num_steps), needs=STAGED),
    "distillation.stage_steps": _one("7", 7, of_loss(lambda loss: loss.stages.length), needs=STAGED),
    "distillation.clip_x0": _one("False", False, of_loss(lambda loss: loss.clip_x0), needs=STAGED),
    "distillation.ratio": _one("3", 3, of_loss(lambda loss: loss.ratio), needs=MATCHED),
    "distillation.regression": _one("0.5", 0.5, of_loss(lambda loss: loss.regression), needs=MATCHED),
    "distillation.regression_steps": _one("7", 7, of_loss(lambda loss: loss.sampler.num_steps), needs=MATCHED),
    "distillation.gan": _one(
        "0.5", [0.5, True], of_loss(lambda loss: [loss.gan, loss.critic.head is not None]), needs=MATCHED
    ),
    "model.answers": _one("consistency", "ConsistencyModel", lambda _, config: type(
        build_model(config, digits_like(1).kind)).__name__),
    "distillation.teacher": _one(str(BASE), BASE, taught),
    "distillation.solver": _one("euler", "euler", distilling("solver"), needs=DISTILLED),
    "distillation.noise_levels": _one("5,9", (5, 9), distilling("noise_levels"), needs=DISTILLED),
    "distillation.double_every": _one("7", 7, distilling("double_every"), needs=DISTILLED),
    "eval.ode_t_end": _one("0.01", 0.01, seen("solver.t_end", "ode"), needs=ODE),
    "eval.classify_by": _one("vlb_continuous", ["vlb_continuous"], by_class(list), needs=CONDITIONAL),
    "eval.classify_rounds": _one("3", 3, by_class(lambda seen: seen["vlb"][0].rounds), needs=CONDITIONAL),
    "eval.classify_told_above_t": _one(
        "0.5", 0.5, by_class(lambda seen: getattr(seen["vlb"][1].model, "t_min", 0.0)),
        needs=(*CONDITIONAL, "model.condition_dropout=0.5"),
    ),
    "eval.classify_z": _one(
        "2.5", 2.5, by_class(lambda seen: seen["vlb"][0].z), needs=(*CONDITIONAL, "eval.classify_rounds=2")
    ),
}  # fmt: skip


def _config(*settings: str) -> Config:
    flags = [f"--config.{setting}" for setting in ("model.norm_groups=8", *settings)]
    return load_config(str(ROOT / "configs/vp/digits.py"), [*TINY, *flags], defaults=get_default_config())


@pytest.mark.parametrize("key", LEAVES)
def test_a_change_of_a_setting_arrives(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A new leaf needs an entry in ARRIVALS, which says where it is used."""
    assert key in ARRIVALS, f"config.{key} is new: say in ARRIVALS where a change of it arrives"
    bench, arrivals = Bench(tmp_path, monkeypatch), ARRIVALS[key]
    for arrival in arrivals if isinstance(arrivals, list) else [arrivals]:
        before, after = _config(*arrival.needs), _config(*arrival.needs, f"{key}={arrival.value}")
        for read, expected in zip(arrival.reads, arrival.expected, strict=True):
            was, found = read(bench, before), read(bench, after)
            assert was != (expected if expected is not CHANGED else found), f"the default is no other than {was}"
            assert expected is CHANGED or found == expected


def test_each_entry_is_of_a_setting():
    assert ARRIVALS.keys() <= set(LEAVES)
