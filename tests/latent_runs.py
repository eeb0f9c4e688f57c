"""Runs of seconds of an autoencoder and of its latents: what the tests of them share."""

from pathlib import Path

from tiny import tiny_command

AUTOENCODER = "latent/digits_autoencoder"


def autoencoder_command(mode: str, workdir: Path, *extra: str, config: str = AUTOENCODER) -> list[str]:
    return tiny_command(mode, workdir, *extra, config=config)


def latent_command(mode: str, workdir: Path, first_stage: Path, *extra: str) -> list[str]:
    return _measured_fast(mode, workdir, first_stage, *extra, config="latent/digits")


def codes_command(mode: str, workdir: Path, first_stage: Path, *extra: str) -> list[str]:
    return _measured_fast(mode, workdir, first_stage, *extra, config="latent/digits_fsq")


def _measured_fast(mode: str, workdir: Path, first_stage: Path, *extra: str, config: str) -> list[str]:
    ours = [f"--config.data.first_stage={first_stage}", "--config.model.attention_resolutions=()"]
    ours += ["--config.eval.likelihoods=vlb_continuous,ode", "--config.eval.vlb_steps_per_image=3"]
    ours += ["--config.eval.ode_rtol=1e-2", "--config.eval.ode_atol=1e-2"]
    return tiny_command(mode, workdir, *ours, *extra, config=config)
