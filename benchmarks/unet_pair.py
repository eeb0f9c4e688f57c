"""The CIFAR-10 U-Net and ``diffusers``' of the same architecture and weights, and what is done with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from experiment.precision import NetworkMode, PrecisionBackbone, fast_inference
from likelihood import FlowLikelihood
from models import EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from samplers import make_sampler
from sde_lib import NoiseStreams, Tabulated
from training.ema import ExponentialMovingAverage
from training.losses import DDPMLoss

Work = Callable[[], Any]
# its classes are found when they are first asked for, which type checkers do not see
theirs_library: Any = diffusers

# Ho et al.'s for CIFAR-10, and one that takes no time
SETTINGS: dict[str, dict[str, Any]] = {
    "cifar10": {"image_size": 32, "channels": 128, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 2},
    "tiny": {"image_size": 16, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1},
}
DROPOUT = 0.1

_RENAMING = (
    (r"^embed\.linear", "time_embedding.linear_"),
    (r"^down\.", "down_blocks."),
    (r"^up\.", "up_blocks."),
    (r"^(down.*)\.resample\.", r"\1.downsamplers.0."),
    (r"^(up.*)\.resample\.", r"\1.upsamplers.0."),
    (r"^middle\.block1", "mid_block.resnets.0"),
    (r"^middle\.block2", "mid_block.resnets.1"),
    (r"^middle\.attention", "mid_block.attentions.0"),
    (r"\.blocks\.", ".resnets."),
    (r"\.attention\.", ".attentions."),
    (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
    (r"\.proj\.", ".to_out.0."),
    (r"\.project\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"^norm_out", "conv_norm_out"),
)


def our_network(name: str) -> UNet:
    """Ours, with no layer at zero, since a network that returns zeros proves nothing equal."""
    settings = SETTINGS[name]
    net = UNet(**settings, attention_resolutions=(settings["image_size"] // 2,), dropout=DROPOUT)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return net


def their_network(name: str, ours: UNet) -> nn.Module:
    """Theirs, with our weights."""
    settings = SETTINGS[name]
    widths = tuple(settings["channels"] * mult for mult in settings["channel_mult"])
    down, up = ["DownBlock2D"] * len(widths), ["UpBlock2D"] * len(widths)
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
    net = theirs_library.UNet2DModel(
        sample_size=settings["image_size"],
        block_out_channels=widths,
        layers_per_block=settings["num_res_blocks"],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
        dropout=DROPOUT,
    )
    net.load_state_dict(their_weights(ours.state_dict(), len(widths)))
    return net


def their_weights(ours: dict[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """Our weights under their names; they have three layers where we have one for queries, keys and values."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        # theirs number the way up from the lowest resolution
        name = re.sub(r"^up\.(\d+)", lambda match: f"up.{num_levels - 1 - int(match[1])}", name)
        for pattern, replacement in _RENAMING:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            theirs |= {
                name.replace("qkv", f"to_{part}"): third for part, third in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            theirs[name] = tensor
    return {name: tensor.clone() for name, tensor in theirs.items()}


@dataclass(frozen=True)
class Side:
    """A side of the comparison: ours or theirs, and its precision.

    Attributes:
        ours: Whose network it is.
        precision: torch.float32 or torch.bfloat16.
        compiled: Through ``torch.compile``; theirs never is, as in their documentation.
    """

    ours: bool
    precision: torch.dtype
    compiled: bool = False

    @property
    def label(self) -> str:
        """Its name in tables."""
        how = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.precision]
        return f"{'ours' if self.ours else 'diffusers'} {how}{' compiled' if self.compiled else ''}"

    @property
    def mode(self) -> NetworkMode:
        """Precision and compilation of our side."""
        return NetworkMode(self.precision, self.compiled)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast of their side, as ``accelerate`` wraps it around the network for ``mixed_precision="bf16"``."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)


class Workbench:
    """Makes the work of a side, a function that does it once.

    Args:
        name: Of ``SETTINGS``.
        batch_size: Images.
        device: Where.
        sampling_steps: Of DDIM.
        likelihood_steps: Of Heun's method along the probability flow, two network calls each.
    """

    def __init__(
        self, name: str, *, batch_size: int, device: torch.device, sampling_steps: int = 20, likelihood_steps: int = 2
    ) -> None:
        self.name, self.batch_size, self.device = name, batch_size, device
        self.sampling_steps, self.likelihood_steps = sampling_steps, likelihood_steps
        generator = torch.Generator().manual_seed(1)
        size = SETTINGS[name]["image_size"]
        self.x = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
        self.t = torch.linspace(0, 999, batch_size).round().to(device)
        self.ours = our_network(name).to(device)
        self._prepared: dict[Side, NetworkScoreModel] = {}

    def _theirs(self) -> nn.Module:
        return their_network(self.name, self.ours).to(self.device)

    def _model(self, backbone: nn.Module) -> NetworkScoreModel:
        return NetworkScoreModel(backbone, Tabulated.ddpm(), EpsParameterization())

    def _fast(self, side: Side) -> NetworkScoreModel:
        """Ours as sampling and evaluation use it; made, and compiled, once."""
        if side not in self._prepared:
            self._prepared[side] = fast_inference(self._model(self.ours), side.mode)
        return self._prepared[side]

    def _copy(self) -> UNet:
        net = our_network(self.name)
        net.load_state_dict(self.ours.state_dict())
        return net.to(self.device)

    def forward(self, side: Side) -> Work:
        """The network once, without gradients; returns its answer."""
        if side.ours:
            backbone = self._fast(side).backbone

            def ours() -> Tensor:
                with torch.no_grad():
                    return backbone(self.x, self.t)

            return ours
        network = self._theirs().eval()

        def theirs() -> Tensor:
            with torch.no_grad(), side.autocast(self.device):
                return network(self.x, self.t).sample.float()

        return theirs

    def training_step(self, side: Side) -> Work:
        """Noise, forward, backward, clipping, AdamW and the average of the weights; returns the loss."""
        return self._our_training_step(side) if side.ours else self._their_training_step(side)

    def _our_training_step(self, side: Side) -> Work:
        net = self._copy().train()
        model = self._model(net)
        ema = ExponentialMovingAverage(model, 0.9999)
        wrapped = self._model(PrecisionBackbone(net, side.precision, compiled=side.compiled)).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-6, fused=True)
        loss_of = DDPMLoss()
        generator = torch.Generator().manual_seed(2)

        def step() -> float:
            eps = torch.randn(self.x.shape, generator=generator).to(self.device)
            t = loss_of.times(model.sde, torch.rand(self.batch_size, generator=generator, dtype=torch.float64))
            loss = loss_of(wrapped, self.x, t.to(self.device), eps).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            return float(loss.detach())

        return step

    def _their_training_step(self, side: Side) -> Work:
        # the loop of examples/unconditional_image_generation, with the options of its documented commands
        network = self._theirs().train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        scheduler = theirs_library.DDPMScheduler(num_train_timesteps=1000)

        def step() -> float:
            noise = torch.randn(self.x.shape, device=self.device)
            timesteps = torch.randint(0, 1000, (self.batch_size,), device=self.device)
            noisy = scheduler.add_noise(self.x, noise, timesteps)
            with side.autocast(self.device):
                prediction = network(noisy, timesteps).sample
            loss = F.mse_loss(prediction.float(), noise.float())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(network.parameters())
            return float(loss.detach())

        return step

    def sampling(self, side: Side) -> Work:
        """DDIM from noise to images."""
        if side.ours:
            model = self._fast(side)
            sampler = make_sampler("ddim", num_steps=self.sampling_steps, grid="leading")
            noise = NoiseStreams(0, range(self.batch_size))

            def ours() -> Tensor:
                with torch.no_grad():
                    return sampler.sample(model, self.x, noise=noise).x0

            return ours
        network = self._theirs().eval()
        scheduler = theirs_library.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)

        def theirs() -> Tensor:
            scheduler.set_timesteps(self.sampling_steps)
            x = self.x
            for t in scheduler.timesteps:
                with torch.no_grad(), side.autocast(self.device):
                    eps = network(x, t).sample
                x = scheduler.step(eps.float(), t, x).prev_sample
            return x

        return theirs

    def likelihood(self, side: Side | None) -> Work:
        """The probability flow's likelihood; None is the network as it was built, for there is no other's."""
        plain = self._copy().eval().requires_grad_(requires_grad=False)
        model = self._model(plain) if side is None else self._fast(side)
        flow = FlowLikelihood(num_levels=256, dequantization="uniform", solver="heun", num_steps=self.likelihood_steps)
        levels = torch.randint(256, self.x.shape, generator=torch.Generator().manual_seed(3))
        x0 = (levels / 127.5 - 1).to(self.device)

        def work() -> Tensor:
            return flow(model, x0, noise=NoiseStreams(0, range(self.batch_size))).bits_per_dim

        return work
