"""A prior of unCLIP from the folder of its pipeline to its embeddings, beside diffusers' own pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_pipelines import clip_text_config, clip_tokenizer, diffusers, unclip_scheduler
from importer_references import randomize
from tiny import ROOT, error, tiny_command

import main
from experiment import load_run
from experiment.text.prompts import negative_prompt, observed_prompts
from models import GuidedScoreModel
from models.text import TransformersEncoder
from samplers import AncestralSampler
from sde_lib import NoiseStreams

transformers = pytest.importorskip("transformers")
PROMPTS = ["a red three", "seven"]


def write_pipeline(folder: Path) -> Any:
    """A small pipeline of Kandinsky's prior with random weights, whose tokenizer knows letters alone."""
    folder.mkdir()
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    image = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=8, projection_dim=12)
    prior = randomize(
        diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=12, num_embeddings=16
        )
    )
    prior.clip_std.data.abs_().add_(0.1)
    pipeline = diffusers.KandinskyPriorPipeline(
        prior.eval(),
        transformers.CLIPVisionModelWithProjection(image),
        transformers.CLIPTextModelWithProjection(clip_text_config(projection_dim=12)).eval(),
        clip_tokenizer(folder / "letters"),
        unclip_scheduler(clip_sample=False),
        transformers.CLIPImageProcessor(size=8, crop_size=8),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def command(mode: str, workdir: Path, folder: Path, *extra: str) -> list[str]:
    given = [f"--config.data.text_encoder={folder / 'text_encoder'}", "--config.device=cpu"]
    flag = [f"--checkpoint={folder}"] if mode == "import" else []
    config = ROOT / "configs/pretrained/kandinsky_prior.py"
    return [f"--config={config}", f"--mode={mode}", f"--workdir={workdir}", *flag, *given, *extra]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """The pipeline, its folder and the work directory that it was imported into."""
    folder = tmp_path_factory.mktemp("prior")
    theirs = write_pipeline(folder / "pipeline")
    assert main.run(command("import", folder / "run", folder / "pipeline")) == 0
    return theirs, folder / "pipeline", folder / "run"


def test_embeddings_of_prompts_are_those_of_diffusers(
    imported: tuple[Any, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    theirs, folder, workdir = imported
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    few = ("--config.sampling.num_steps=3", "--config.sampling.num_samples=2")
    draw = command("sample", workdir, folder, *few, f"--output={tmp_path}", f"--prompts={tmp_path / 'prompts.txt'}")
    assert main.run(draw) == 0
    drawn = np.load(tmp_path / "samples.npz")["arr_0"]
    assert (tmp_path / "captions.txt").read_text() == "a red three\nseven\n"

    run = load_run(workdir, device="cpu")
    assert run.kind.image_shape == (12,) and run.kind.space.mean == tuple(theirs.prior.clip_mean[0].tolist())
    told = run.conditions.tell(observed_prompts(run.config, run.conditions, PROMPTS)[0])
    empty = negative_prompt(run.config, run.kind, run.model)
    guided = GuidedScoreModel(run.model, weight=4.0, negative=empty)

    def ours(sampler: AncestralSampler) -> torch.Tensor:
        noise = NoiseStreams(0, range(2))
        x_T = sampler.prior_sample(run.sde, (12,), noise, device=torch.device("cpu"))
        return run.decode(sampler.sample(guided, x_T, cond=told, noise=noise).x0)

    by_command = ours(AncestralSampler(num_steps=3, grid="trailing"))
    np.testing.assert_allclose(drawn, by_command.float().numpy(), rtol=0, atol=1e-6)

    # theirs takes other steps
    theirs.scheduler.set_timesteps(4)
    grid = torch.cat([theirs.scheduler.timesteps.double() + 1, torch.zeros(1)]) / 1000
    noise = NoiseStreams(0, range(2))
    x_T = AncestralSampler(grid=grid).prior_sample(run.sde, (12,), noise, device=torch.device("cpu"))
    monkeypatch.setattr(
        diffusers.schedulers.scheduling_unclip, "randn_tensor", lambda shape, **_: noise.normal(shape[1:])
    )
    expected = theirs(PROMPTS, num_inference_steps=4, guidance_scale=4.0, latents=x_T.float()).image_embeds
    torch.testing.assert_close(ours(AncestralSampler(grid=grid)).float(), expected, rtol=0, atol=5e-5)


def test_a_projected_encoder_of_clip_gives_the_embedding_of_a_text(imported: tuple[Any, Path, Path]):
    theirs, folder, _ = imported
    encoder = TransformersEncoder(folder / "text_encoder")
    assert (encoder.features, encoder.pooled_features, encoder.pooling) == (12, 12, "own")
    text = encoder.encode(PROMPTS)
    read = theirs.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        answer = theirs.text_encoder(read.input_ids)
    torch.testing.assert_close(text.pooled, answer.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(text.tokens[text.mask], answer.last_hidden_state[text.mask], rtol=0, atol=1e-6)


def test_bad_input_is_refused_in_one_line(
    imported: tuple[Any, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, folder, workdir = imported
    cases = {
        "its prior can be read, by --source diffusers_prior": ("import", "--config.source.name=diffusers"),
        "condition=text needs a caption of each image": ("import", "--config.data.text_encoder="),
        "the model has cond_pooled 12, but npz has 0": ("import", "--config.data.text_options=pooling=none"),
        "data.condition=text needs a caption of each image": ("train", "--config.data.dataset=moons"),
        "none.npz not found": ("sample", "--config.data.root=none.npz"),
    }  # fmt: skip
    for message, (mode, flag) in cases.items():
        where = tmp_path / "run" if mode == "import" else workdir
        assert message in error(capsys, command(mode, where, folder, flag)), message
        assert not (tmp_path / "run").exists()
    alone = tiny_command("train", tmp_path / "run", "--config.model.backbone=prior_transformer", config="vp/moons")
    assert "cond_tokens must be at least 1, got 0; raise it" in error(capsys, alone)
