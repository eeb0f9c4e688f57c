"""The prior of unCLIP in folders of diffusers, ``PriorTransformer``, as Karlo's and Kandinsky's, read without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data import DataError, RealSpace

from ...backbones import PriorTransformer
from ..shared.plan import ModelPlan, PlannedModel
from ..shared.renaming import Source, halves, same
from ..shared.settings import Config, Settings, read_json
from ..shared.tensors import notes_on_types
from .files import SCHEDULER, find_folder, read_weights
from .settings import PREDICTIONS, SCHEDULERS, plan_sde

PRIOR = "PriorTransformer"
_UNCLIP = "UnCLIPScheduler"
_SCHEDULERS = (_UNCLIP, *(name for name in SCHEDULERS if name != "ScoreSdeVeScheduler"))
# of how samples are drawn, and of no effect on the model
_OF_SAMPLING = ("clip_sample", "clip_sample_range", "variance_type")
_SPACE = ("clip_mean", "clip_std")
# of each part of a tensor's name theirs, where it is another
_THEIRS = {
    "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2", "linear_in": "proj_in",
    "of_tokens": "encoder_hidden_states_proj", "of_pooled": "embedding_proj", "query": "prd_embedding",
    "places": "positional_embedding", "layers": "transformer_blocks", "attend": "attn1", "q": "to_q", "kv": "to_kv",
    "proj": "to_out.0", "norm2": "norm3", "expand": "ff.net.0.proj", "contract": "ff.net.2",
    "linear_out": "proj_to_clip_embeddings",
}  # fmt: skip


def plan_prior(prior: Mapping[str, Any], scheduler: Config) -> ModelPlan:
    """Plan a model from the settings of a pipeline.

    Args:
        prior: What ``prior/config.json`` holds; settings that are left out have the defaults of the class.
        scheduler: What ``scheduler/scheduler_config.json`` holds, the path of such a file, or flags, of which all must
            be known.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a model that is not supported.
    """
    of_prior = Settings({name: value for name, value in prior.items() if not name.startswith("_")})
    num_heads = of_prior.integer("num_attention_heads", 32, least=1)
    hidden = num_heads * of_prior.integer("attention_head_dim", 64, least=1)
    num_dims = of_prior.integer("embedding_dim", 768, least=1)
    query = of_prior.take("added_emb_type", "prd") is not None
    of_prior.refuse_unless(
        added_emb_type=("prd", None),
        additional_embeddings=3 + query,
        clip_embed_dim=(None, num_dims),
        dropout=0.0,
        embedding_proj_norm_type=None,
        encoder_hid_proj_type="linear",
        norm_in_type=None,
        time_embed_act_fn=("silu", "swish"),
        time_embed_dim=(None, hidden),
    )
    pooled = of_prior.take("embedding_proj_dim")
    network = {
        "num_dims": num_dims,
        "hidden": hidden,
        "num_layers": of_prior.integer("num_layers", 20),
        "num_heads": num_heads,
        "max_tokens": of_prior.integer("num_embeddings", 77),
        "cond_tokens": num_dims,
        "cond_pooled": num_dims if pooled is None else of_prior.integer("embedding_proj_dim"),
        "query": query,
    }
    of_prior.finish()
    settings = Settings(scheduler)
    if settings.choice("_class_name", _UNCLIP, _SCHEDULERS) == _UNCLIP:
        settings.values.setdefault("beta_schedule", "squaredcos_cap_v2")
    prediction = settings.choice("prediction_type", "epsilon", tuple(PREDICTIONS))
    if str(settings.take("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"a {PRIOR} has no outputs for a variance, got variance_type={settings.take('variance_type')}; correct it"
        )
    sde = plan_sde(settings)
    settings.ignore(_OF_SAMPLING)
    if isinstance(scheduler, str) and scheduler.strip().startswith("--"):
        settings.finish()
    return ModelPlan("prior_transformer", network, sde, parameterization=PREDICTIONS[prediction], time_input="index")


def prior_sources(network: PriorTransformer) -> dict[str, Source]:
    """Map a network's tensors to the state dict of ``PriorTransformer``."""
    sources = {}
    for ours in network.state_dict():
        theirs = ".".join(_THEIRS.get(part, part) for part in ours.split("."))
        names = tuple(theirs.replace("to_kv", one) for one in ("to_k", "to_v"))
        sources[ours] = Source(names, halves) if "to_kv" in theirs else Source((theirs,), same)
    return sources


def from_diffusers_prior(name: Path | str, config: Config | None = None) -> PlannedModel:
    """Read a ``PriorTransformer``: a model of embeddings of images, given a text (Ramesh et al. 2022, DALL-E 2).

    It is told ``Condition(tokens=..., mask=..., pooled=...)``: the last hidden states of CLIP's text encoder, where
    they are of tokens, and the text's embedding. "No text" is those of an empty text.

    The JSON files and the tensors are read here: diffusers need not be installed. The table of betas is that of the
    scheduler's settings in float64, which diffusers rounds to float32.

    Args:
        name: A folder, or a name on the Hugging Face hub such as ``kandinsky-community/kandinsky-2-1-prior``: of a
            pipeline, with the network in ``prior/`` and the scheduler in ``scheduler/`` or ``prior_scheduler/``, of
            which nothing else is read; or of the network alone, whose scheduler is looked for beside it.
        config: The scheduler's settings where no file says them: a mapping, the path of a JSON file, or flags. Without,
            they are those of the published ones: 1000 steps of ``squaredcos_cap_v2``, predicting x0.

    Returns:
        The model, in evaluation mode, of embeddings that are standardized by ``space``, which the checkpoint says;
        ``notes`` says what was chosen.

    Raises:
        ValueError: In one line: a file is missing, cannot be read or contradicts another, or the network is of another
            kind.
    """
    folder = find_folder(name, ("prior/", ""))
    prior = folder / "prior" if (folder / "prior").is_dir() else folder
    said, notes = read_json(prior / "config.json", f"{PRIOR}'s config"), ()
    kind = said.get("_class_name", PRIOR)
    if kind != PRIOR:
        raise ValueError(f"the network of {prior} must be a {PRIOR}, got {kind}; take --source diffusers for a U-Net")
    beside = prior.resolve().parent
    places = [prior / SCHEDULER, *(beside / one / SCHEDULER for one in ("scheduler", "prior_scheduler"))]
    file = next((place for place in places if place.is_file()), None)
    if file is not None and config is not None:
        raise ValueError(f"config {str(config)!r} is of no use: {file} says all settings; leave it out")
    scheduler: Config | None = config if file is None else read_json(file, "scheduler's config")
    if scheduler is None:
        scheduler = {"_class_name": _UNCLIP, "prediction_type": "sample"}
        notes = (
            f"no file says the scheduler of {folder}: unCLIP's is assumed, 1000 steps of squaredcos_cap_v2, predicting "
            "x0; config.source.config='--beta_schedule ... --prediction_type ...' says otherwise",
        )
    path, tensors = read_weights(prior)
    plan = plan_prior(said, scheduler)
    space = _space_of(tensors, plan.network["num_dims"], path)
    model = plan.load({key: one for key, one in tensors.items() if key not in _SPACE}, prior_sources, path=path)
    model.notes, model.space = notes + notes_on_types(tensors, path=path), space
    return model


def _space_of(tensors: Mapping[str, Tensor], num_dims: int, path: Path) -> RealSpace:
    found = [tensors[name].double().flatten().tolist() for name in _SPACE if name in tensors]
    try:
        if [len(one) for one in found] == [num_dims, num_dims]:
            return RealSpace(tuple(found[0]), tuple(found[1]))
    except DataError:
        pass
    raise ValueError(
        f"checkpoint {path} must have clip_mean and clip_std, {num_dims} finite numbers each and those of clip_std "
        "above 0, by which embeddings are standardized; fetch it again"
    )
