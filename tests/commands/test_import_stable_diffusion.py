"""A pipeline of Stable Diffusion from import to its samples, beside diffusers' own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_pipelines import BETAS, ONE, TWO, clip_text_config, clip_tokenizer, diffusers
from importer_references import randomize

import main
from experiment import load_run
from experiment.latents.encoding import latent_model
from experiment.text.prompts import negative_prompt, observed_prompts
from models import GuidedScoreModel
from samplers import DDIMSampler
from sde_lib import NoiseStreams

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT = "a red three"
SMALL = [(ONE, "epsilon"), pytest.param(TWO, "v_prediction", marks=pytest.mark.slow)]


def write_pipeline(folder: Path, settings: dict[str, Any], prediction: str) -> Any:
    """A small pipeline with random weights, whose tokenizer knows letters alone."""
    tokenizer = clip_tokenizer(folder)
    torch.manual_seed(0)
    text = transformers.CLIPTextModel(clip_text_config())
    vae = randomize(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        **BETAS, prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    unet = randomize(diffusers.UNet2DConditionModel(**settings))
    parts = {"vae": vae, "text_encoder": text.eval(), "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    pipeline = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return pipeline


def command(mode: str, workdir: Path, folder: Path, *extra: str, vae: bool = False) -> list[str]:
    config = ROOT / "configs/pretrained" / ("stable_diffusion_vae.py" if vae else "stable_diffusion.py")
    given = [] if vae else [f"--config.data.text_encoder={folder / 'text_encoder'}", "--config.device=cpu"]
    flag = [f"--checkpoint={folder}"] if mode == "import" else []
    size = "--config.data.image_size=16"
    return [f"--config={config}", f"--mode={mode}", f"--workdir={workdir}", size, *flag, *given, *extra]


@pytest.mark.parametrize(("settings", "prediction"), SMALL, ids=["1.5", "2.1"])
def test_a_pipeline_is_imported_and_draws_what_diffusers_draws(
    settings: dict[str, Any], prediction: str, tmp_path: Path
):
    folder, run = tmp_path / "pipeline", tmp_path / "run"
    theirs = write_pipeline(folder, settings, prediction)
    assert main.run(command("import", tmp_path / "vae", folder, vae=True)) == 0
    first_stage = f"--config.data.first_stage={tmp_path / 'vae'}"
    assert main.run(command("import", run, folder, first_stage)) == 0
    draw = command("sample", run, folder, first_stage, f"--prompt={PROMPT}", "--config.sampling.num_steps=4")
    assert main.run(draw) == 0
    drawn = np.load(run / "samples" / "samples.npz")["arr_0"]

    loaded = load_run(run, device="cpu")
    sampler = DDIMSampler(num_steps=4, grid="trailing")
    noise = NoiseStreams(0, range(1))
    x_T = sampler.prior_sample(loaded.sde, (4, 8, 8), noise, device=torch.device("cpu"))
    with torch.no_grad():
        expected = theirs(
            PROMPT,
            num_inference_steps=4,
            guidance_scale=7.5,
            latents=x_T.float(),
            height=16,
            width=16,
            output_type="pt",
        ).images  # fmt: skip
    observed, _ = observed_prompts(loaded.config, loaded.conditions, [PROMPT])
    empty = negative_prompt(loaded.config, loaded.kind, loaded.model)
    guided = GuidedScoreModel(loaded.model, weight=7.5, negative=empty)
    z = sampler.sample(guided, x_T, cond=loaded.conditions.tell(observed), noise=noise).x0
    space = loaded.kind.latents
    assert space is not None
    both = latent_model(loaded.model, space)
    mean = both.first_stage.decode(both.restore(z.float())).mean
    torch.testing.assert_close((mean / 2 + 0.5).clamp(0, 1), expected.cpu(), rtol=0, atol=5e-5)
    # the command rounds that to grey levels
    levels = (255 * expected[0].permute(1, 2, 0)).numpy()
    assert np.abs(drawn[0] - levels).max() <= 0.51
