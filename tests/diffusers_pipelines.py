"""Small pipelines of diffusers with random weights, and comparisons with its networks."""

import json

import pytest
import torch
from importer_references import per_sample_error, randomize

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

BASE = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}

# small forms of Stable Diffusion 1.5, with 8 heads at every level there, and of 2.1, with heads of 64 channels
COMMON = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 12,
}  # fmt: skip
ONE = COMMON | {"attention_head_dim": 4}
TWO = COMMON | {"attention_head_dim": (2, 4), "use_linear_projection": True}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def save(folder, settings, scheduler=None, *, safe=True):
    """A pipeline of diffusers with random weights, in a folder."""
    unet = randomize(diffusers.UNet2DModel(**settings))
    variance = "learned_range" if settings.get("out_channels") == 6 else "fixed_small"
    scheduler = scheduler or diffusers.DDPMScheduler(variance_type=variance)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder, safe_serialization=safe)
    return unet


LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]


def clip_tokenizer(folder, max_length=16):
    """A tokenizer of CLIP that knows letters alone; its files are in the folder."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    paths = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    return transformers.CLIPTokenizer(*paths, model_max_length=max_length)


def clip_text_config(**options):
    """Settings of a small text encoder of CLIP for the words of that tokenizer."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    places = {"max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return transformers.CLIPTextConfig(vocab_size=len(WORDS), **sizes, **places, **options)


def unclip_scheduler(**options):
    """unCLIP's scheduler with its table in float64: its own, in float32, has lost digits at the last step."""
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample", **options)
    levels = torch.arange(1001, dtype=torch.float64) / 1000
    alpha_bar = ((levels + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    scheduler.betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


class Float64Sinusoid(torch.nn.Module):
    """Stands in for diffusers' embedding, whose frequencies are float32 even in a float64 network."""

    def __init__(self, channels, shift):
        super().__init__()
        half = channels // 2
        self.frequencies = torch.tensor([10000 ** (-i / (half - shift)) for i in range(half)], dtype=torch.float64)

    def forward(self, t):
        phase = t.double()[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def save_latent(folder, unet, scheduler):
    """A pipeline of latents, whose autoencoder is the smallest that has all its parts."""
    vqvae = randomize(diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=16))
    diffusers.LDMPipeline(vqvae, unet, scheduler).save_pretrained(folder)
    return vqvae


def inputs(unet, size=4):
    config = unet.config
    x = torch.randn(size, config.in_channels, config.sample_size, config.sample_size)
    x[-1] *= 0.01  # so little contrast that the epsilon of the norms shows
    labels = None if config.num_class_embeds is None else torch.arange(size) % config.num_class_embeds
    return x, torch.tensor([0.0, 1.0, 517.0, 999.0]), labels


@torch.no_grad()
def same_outputs(ours, theirs, tolerance=2e-5):
    x, t, labels = inputs(theirs)
    return per_sample_error(ours(x, t, labels), theirs(x, t, class_labels=labels).sample.double()) < tolerance


def same_bits(one, other):
    state, expected = one.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
