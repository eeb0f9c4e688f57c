"""The CIFAR-10 U-Net and ``diffusers``' of the same architecture and weights, and what is done with them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.overhead import theirs
from benchmarks.timing import Work
from data import TensorDataset
from experiment.precision import NetworkMode, fast_inference
from likelihood import FlowLikelihood
from models import EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from models.pretrained import export_diffusers
from samplers import make_sampler
from sde_lib import NoiseStreams, Tabulated
from training.ema import ExponentialMovingAverage
from training.losses import DDPMLoss
from training.state import TrainingState
from training.trainer import Trainer, TrainingOptions

# its classes are found when they are first asked for, which type checkers do not see
theirs_library: Any = diffusers

# Ho et al.'s for CIFAR-10, and one that takes no time
SETTINGS: dict[str, dict[str, Any]] = {
    "cifar10": {"image_size": 32, "channels": 128, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 2},
    "tiny": {"image_size": 16, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1},
}
DROPOUT = 0.1


def our_network(name: str) -> UNet:
    """Ours, with no layer at zero, since a network that returns zeros proves nothing equal."""
    settings = SETTINGS[name]
    net = UNet(**settings, attention_resolutions=(settings["image_size"] // 2,), dropout=DROPOUT)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return net


def their_network(ours: NetworkScoreModel) -> nn.Module:
    """Theirs, with our weights and in evaluation mode, from the pipeline that ``--mode export`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        export_diffusers(ours, folder)
        return theirs_library.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)


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
        self.batch_size, self.device = batch_size, device
        self.sampling_steps, self.likelihood_steps = sampling_steps, likelihood_steps
        generator = torch.Generator().manual_seed(1)
        size = SETTINGS[name]["image_size"]
        self.x = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
        self.t = torch.linspace(0, 999, batch_size).round().to(device)
        self.ours = our_network(name).to(device)
        self._prepared: dict[Side, NetworkScoreModel] = {}

    def _theirs(self, side: Side) -> Callable[[Tensor, Tensor], Tensor]:
        """Their network as sampling and evaluation use it."""
        network = their_network(self._model()).to(self.device)

        @torch.no_grad()
        def call(x: Tensor, t: Tensor) -> Tensor:
            with side.autocast(self.device):
                return network(x, t).sample.float()

        return call

    def _model(self) -> NetworkScoreModel:
        return NetworkScoreModel(self.ours, Tabulated.ddpm(), EpsParameterization())

    def _fast(self, side: Side) -> NetworkScoreModel:
        """Ours as sampling and evaluation use it; made, and compiled, once."""
        if side not in self._prepared:
            self._prepared[side] = fast_inference(self._model(), NetworkMode(side.precision, side.compiled))
        return self._prepared[side]

    def forward(self, side: Side) -> Work:
        """The network once, without gradients; returns its answer."""
        if side.ours:
            backbone = self._fast(side).backbone
            return torch.no_grad()(lambda: backbone(self.x, self.t))
        network = self._theirs(side)
        return lambda: network(self.x, self.t)

    def training_step(self, side: Side) -> Work:
        """Noise, forward, backward, clipping, AdamW and the average of the weights; returns the loss."""
        return self._our_training_step(side) if side.ours else self._their_training_step(side)

    def _our_training_step(self, side: Side) -> Work:
        model, loss = copy.deepcopy(self._model()), DDPMLoss()
        model.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-6, fused=True)
        ema = ExponentialMovingAverage(model, 0.9999)
        state = TrainingState(model, ema, optimizer, loss, loss.time_sampler(model.sde, "uniform"))
        options = TrainingOptions(10**6, batch_size=self.batch_size, learning_rate=1e-4)
        mode = NetworkMode(side.precision, side.compiled)
        trainer = Trainer(state, TensorDataset(self.x.cpu(), torch.zeros(self.batch_size).long()), options, mode=mode)
        return lambda: trainer.step().loss

    def _their_training_step(self, side: Side) -> Work:
        # the loop of examples/unconditional_image_generation, with the options of its documented commands
        network = their_network(self._model()).to(self.device).train()
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
            return torch.no_grad()(lambda: sampler.sample(model, self.x, noise=noise).x0)
        scheduler = theirs_library.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        return theirs(scheduler, self._theirs(side), self.x, self.sampling_steps)

    def likelihood(self, side: Side | None) -> Work:
        """The likelihood of the probability-flow ODE; None is the network as it was built, for there is no other's."""
        plain = copy.deepcopy(self._model()).eval().requires_grad_(requires_grad=False)
        model = plain if side is None else self._fast(side)
        flow = FlowLikelihood(num_levels=256, dequantization="uniform", solver="heun", num_steps=self.likelihood_steps)
        levels = torch.randint(256, self.x.shape, generator=torch.Generator().manual_seed(3))
        x0 = (levels / 127.5 - 1).to(self.device)
        return lambda: flow(model, x0, noise=NoiseStreams(0, range(self.batch_size))).bits_per_dim
