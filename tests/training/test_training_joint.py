"""The loss of an autoencoder and the diffusion of its latents: the bound that is measured, and gradients of all."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_runs import latent_command
from tiny import error, last_tensors, tiny_command
from torch import Tensor, nn

import main
from benchmarks import rate_distortion
from data import LatentSpace, LevelSpace
from experiment import load_run
from likelihood import ContinuousBound, FlowLikelihood, LatentBound
from models import (
    Autoencoder,
    EDMParameterization,
    FirstStage,
    GaussianLatent,
    GaussianMixtureScoreModel,
    LatentDiffusion,
    NetworkScoreModel,
)
from models.backbones import UNet
from models.first_stage import DiagonalNoise, FixedNoise
from sde_lib import VE, VP, NoiseStreams, make_ode_solver
from training.losses import JointLoss

LOG_SNR = 4.0
R = math.exp(-LOG_SNR / 2)
SLOPE = 0.7


class Line(nn.Module):
    """Two latents of two numbers: q(z | x) = N(a x, r^2), p(x | z) = N(b z, s^2)."""

    pixels, in_channels, latent_shape = "gaussian", 2, (2,)

    def __init__(self, bottleneck: nn.Module) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.a, self.b = nn.Parameter(torch.tensor(SLOPE).double()), nn.Parameter(torch.tensor(1.3).double())
        self.log_std = nn.Parameter(torch.tensor(-0.4).double())

    def encode(self, x: Tensor) -> GaussianLatent:
        return GaussianLatent(self.a * x, torch.full_like(x, math.log(R)))

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat((self.b * z, self.log_std.expand_as(z)), 1)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.encode(x)
        return latent.mean, latent.log_std, self.decode(latent.draw(eps))


class Scored(GaussianMixtureScoreModel):
    """An exact prior N(m, C) with an autoencoder, as a network has one."""

    first_stage: FirstStage


def _model(sde: Any, bottleneck: nn.Module, *, variance: float) -> Scored:
    """Its law at the SDE's first noise is N((0.2, -0.3), variance I), of z itself."""
    mean = torch.tensor([[0.2, -0.3]], dtype=torch.float64)
    model = Scored(sde, means=mean, covs=variance * torch.eye(2, dtype=torch.float64)[None], weights=[1.0])
    model.first_stage = FirstStage(Line(bottleneck), sde)
    return model


def _kl(x0: Tensor, variance: float) -> Tensor:
    """KL(N(a x, r^2) || N(m, variance)), summed over both dimensions."""
    squared = (SLOPE * x0 - torch.tensor([0.2, -0.3]).double()).square()
    return 0.5 * ((R**2 + squared) / variance - 1 - math.log(R**2 / variance)).sum(1)


X0 = torch.tensor([[0.3, -1.1], [2.0, 0.4]], dtype=torch.float64)
OWN = VE(sigma_min=R, sigma_max=50.0)


def test_where_the_noise_is_the_sdes_first_the_rate_is_the_kl():
    rows = X0.repeat_interleave(1000, 0)
    # the diffusion is of the mean, whose state at the first time has the noise of z
    model = _model(OWN, FixedNoise(log_snr=LOG_SNR), variance=0.5 - R**2)
    latent = LatentDiffusion(model.first_stage, model)
    assert (
        latent.is_own_state
        and not LatentDiffusion(model.first_stage, _model(VP(), FixedNoise(), variance=1)).is_own_state
    )
    bound = LatentBound(ContinuousBound(num_levels=None, steps_per_image=20), num_levels=None)
    terms = bound(latent, rows, noise=NoiseStreams(0, range(len(rows))))
    rate = (terms.prior + terms.diffusion).view(2, -1)
    stderr = rate.std(1) / math.sqrt(1000)
    assert bool(((rate.mean(1) - _kl(X0, 0.5)).abs() < 4 * stderr).all()), (rate.mean(1), _kl(X0, 0.5), stderr)
    assert float(stderr.max()) < 0.05
    # by the flow, z's own density
    solver = make_ode_solver("rk4", num_steps=30, grid="log_snr")
    flow = FlowLikelihood(num_levels=None, dequantization="none", divergence="exact", solver=solver)
    theirs = LatentBound(flow, num_levels=None)(latent, rows, noise=NoiseStreams(0, range(len(rows))))
    exact = (theirs.prior + theirs.diffusion).view(2, -1)
    assert bool(((exact.mean(1) - _kl(X0, 0.5)).abs() < 4 * exact.std(1) / math.sqrt(1000)).all())


@pytest.mark.parametrize("own", [True, False])
def test_the_loss_is_the_bound_that_is_measured(own: bool):
    # elsewhere the noise of the encoder comes before the SDE's own
    sde, bottleneck = (
        (OWN, FixedNoise(log_snr=LOG_SNR)) if own else (VE(sigma_min=0.01, sigma_max=50.0), DiagonalNoise())
    )
    model = _model(sde, bottleneck, variance=0.5 - R**2 if own else 0.5)
    count = 10_000
    rows = X0.repeat_interleave(count, 0)
    generator = torch.Generator().manual_seed(0)
    eps, more = (torch.randn(rows.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = JointLoss(num_levels=None)
    # times spread evenly, as with step sampling low_discrepancy
    t = loss.times(sde, (torch.arange(len(rows)) % count + 0.5) / count)
    with torch.no_grad():
        nats = 2 * math.log(2) * loss(model, rows, t, eps, more_noise=more).view(2, count)  # pyright: ignore[reportArgumentType]
    bound = LatentBound(ContinuousBound(num_levels=None, steps_per_image=20), num_levels=None)
    latent = LatentDiffusion(model.first_stage, model)
    few = X0.repeat_interleave(1000, 0)
    measured = bound(latent, few, noise=NoiseStreams(0, range(len(few)))).total.view(2, 1000)
    stderr = (nats.var(1) / count + measured.var(1) / 1000).sqrt()
    assert bool(((nats.mean(1) - measured.mean(1)).abs() < 4 * stderr).all()), (nats.mean(1), measured.mean(1), stderr)
    assert float(stderr.max()) < 0.25


def joint_command(mode: str, workdir: Path, *extra: str) -> list[str]:
    small = ["--config.model.attention_resolutions=()", "--config.eval.vlb_steps_per_image=3"]
    small += [
        "--config.eval.likelihoods=vlb_continuous,ode",
        "--config.eval.ode_rtol=1e-2",
        "--config.eval.ode_atol=1e-2",
    ]
    return tiny_command(mode, workdir, *small, *extra, config="latent/digits_joint")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("joint") / "run"
    assert main.run(joint_command("train", workdir)) == 0
    return workdir


def test_encoder_decoder_and_score_are_trained_averaged_and_resumed_to_the_same_bits(run: Path, tmp_path: Path):
    assert main.run(joint_command("train", tmp_path, "--config.training.num_steps=3")) == 0
    first = last_tensors(tmp_path)
    assert main.run(joint_command("train", tmp_path)) == 0
    whole, resumed = last_tensors(run), last_tensors(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    parts = ("backbone.encoder.0.weight", "backbone.decoder.0.weight")
    for name in (f"first_stage.{which}{part}" for which in ("model.", "ema.") for part in parts):
        assert not torch.equal(first[name], whole[name])


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("eval", []),
        ("sample", []),
        ("interpolate", ["--config.interpolate.images=0,1", "--config.interpolate.latents=q"]),
        ("edit", ["--config.edit.num_images=2"]),
    ],
)
def test_its_latents_are_measured_sampled_and_edited(run: Path, tmp_path: Path, mode: str, options: list[str]):
    output = [] if mode in ("eval", "sample") else [f"--output={tmp_path}"]
    assert main.run(joint_command(mode, run, *options, *output)) == 0
    if mode == "eval":
        # the SDE's first noise is that of the latents themselves
        warnings = json.loads((run / "eval" / "report.json").read_text())["warnings"]
        assert not any("first sigma" in line for line in warnings)


@pytest.mark.parametrize("options", [{}, {"step": 3}, {"weights": "raw"}])
def test_a_notebook_decodes_by_the_autoencoder_of_the_same_weights(run: Path, options: dict[str, Any]):
    loaded = load_run(run, device="cpu", **options)
    first_stage = loaded.model.first_stage
    assert first_stage is not None and isinstance(loaded.space, LatentSpace)
    images = loaded.sample(2)
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.uint8
    with torch.no_grad():
        mean = first_stage.encode(LevelSpace(17).encode(images)).mean
    assert torch.equal(loaded.encode(images), mean)


def test_a_model_of_a_shifted_mean_is_measured_by_it():
    model = _model(OWN, FixedNoise(log_snr=LOG_SNR), variance=0.5 - R**2)
    shifted = LatentDiffusion(model.first_stage, model, mean=torch.full((2,), 3.0).double())
    bound = LatentBound(ContinuousBound(num_levels=None, steps_per_image=20), num_levels=None)
    # where the latents are 3 less, so are the data
    there = bound(LatentDiffusion(model.first_stage, model), X0 - 3 / SLOPE, noise=NoiseStreams(0, range(2)))
    here = bound(shifted, X0, noise=NoiseStreams(0, range(2)))
    torch.testing.assert_close(here.diffusion + here.prior, there.diffusion + there.prior)


def test_the_rate_along_the_noise_is_the_kl_of_a_noisier_state():
    model = _model(OWN, FixedNoise(log_snr=LOG_SNR), variance=0.5 - R**2)
    latent, rows = LatentDiffusion(model.first_stage, model), X0.repeat_interleave(500, 0)
    for log_snr in (-1.0, 2.0):
        found = rate_distortion.measure(latent, rows, log_snr, num_levels=None, steps_per_image=20)
        noise = math.exp(-log_snr)
        variance = 0.5 - R**2 + noise
        squared = (SLOPE * X0 - torch.tensor([0.2, -0.3]).double()).square()
        kl = 0.5 * ((noise + squared) / variance - 1 - math.log(noise / variance)).sum(1).mean()
        exact = float(kl) / (2 * math.log(2))
        assert abs(found["rate"] - exact) < 4 * found["rate_stderr"] < 0.1 * exact
        assert found["bits_per_dim"] == pytest.approx(found["distortion"] + found["rate"])


def test_noise_is_not_added_twice():
    model = _model(OWN, FixedNoise(log_snr=LOG_SNR), variance=0.5 - R**2)
    flow = FlowLikelihood(num_levels=None, dequantization="decoder")
    with pytest.raises(ValueError, match="dequantization 'decoder' adds once more; take 'none'"):
        LatentBound(flow, num_levels=None)(LatentDiffusion(model.first_stage, model), X0)


def test_an_sde_that_begins_elsewhere_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = ["--config.model.first_stage.log_snr=8", "--config.training.num_steps=1"]
    assert main.run(joint_command("train", tmp_path, *other)) == 0
    assert "the SDE begins with another noise than that of the latents, 0.0183156" in capsys.readouterr().err


def test_each_sample_is_told_its_class():
    torch.manual_seed(0)
    sde = VE(sigma_min=R, sigma_max=20.0)
    network = UNet(image_size=4, in_channels=1, channels=8, channel_mult=(1,), attention_resolutions=(), num_classes=3)
    with torch.no_grad():
        # its last layers begin at zero
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    autoencoder = Autoencoder(
        image_size=8,
        in_channels=1,
        latent_channels=1,
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        log_snr=LOG_SNR,
    )
    first_stage = FirstStage(autoencoder, sde)
    model = NetworkScoreModel(network, sde, EDMParameterization(data_std=1.0), first_stage=first_stage)
    loss, labels = JointLoss(num_levels=17), torch.tensor([2, 0, 1])
    x0 = LevelSpace(17).encode(torch.randint(17, (3, 1, 8, 8)))
    t, eps, more = loss.times(sde, torch.tensor([0.1, 0.4, 0.8])), torch.randn_like(x0), torch.randn_like(x0)
    with torch.no_grad():
        together = loss(model, x0, t, eps, cond=labels, more_noise=more)
        other = loss(model, x0, t, eps, cond=labels.flip(0), more_noise=more)
        for k in range(3):
            row = slice(k, k + 1)
            alone = loss(model, x0[row], t[row], eps[row], cond=labels[row], more_noise=more[row])
            torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    assert float((together - other).abs()[[0, 2]].min()) > 1e-4


def test_its_autoencoder_is_none_for_other_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    taken = latent_command("train", tmp_path, run)
    assert "holds an autoencoder that is a part of its own diffusion" in error(capsys, taken)
    assert "latents of its own autoencoder" in error(capsys, joint_command("restore", run))


BAD: dict[tuple[str, ...], str] = {
    ("--config.data.first_stage=runs/x",): "model.first_stage trains an autoencoder, data.first_stage names one",
    ("--config.model.first_stage.bottleneck=fsq",): "bottleneck=fsq makes codes, through which a diffusion trains no",
    ("--config.model.first_stage.bottleneck=vq",): "bottleneck=vq makes codes, through which a diffusion trains no",
    ("--config.model.first_stage.width=3",): "unknown key of config.model.first_stage: 'width'",
    ("--config.model.first_stage.latent_channels=9",): "a latent must not be larger than the image",
    ("--config.training.loss=dsm",): "model.first_stage is trained by loss 'joint'",
    ("--config.data.dataset=moons",): "backbone unet is of images, got vectors of 2 numbers",
}


@pytest.mark.parametrize("options", BAD)
def test_runs_that_cannot_be_are_refused(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert BAD[options] in error(capsys, joint_command("train", tmp_path, *options))


def test_a_joint_loss_needs_an_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = tiny_command("train", tmp_path, "--config.training.loss=joint")
    assert "model.first_stage is trained by loss 'joint'" in error(capsys, wrong)
