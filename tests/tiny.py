"""A run of seconds: what the tests of whole commands share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The smallest network that still has every kind of layer, trained for a moment.
TINY = [
    "--config.device=cpu",
    "--config.model.channels=16",
    "--config.model.channel_mult=1,1",
    "--config.model.num_res_blocks=1",
    "--config.training.num_steps=6",
    "--config.training.batch_size=8",
    "--config.training.checkpoint_every=3",
    "--config.training.log_every=2",
    "--config.training.sample_every=0",
    "--config.optim.warmup_steps=2",
    "--config.sampling.num_steps=5",
    "--config.sampling.num_samples=5",
    "--config.sampling.batch_size=3",
    "--config.eval.num_images=10",
    "--config.eval.batch_size=4",
    "--config.eval.vlb_num_steps=4",
]


def tiny_command(mode: str, workdir: Path, *extra: str, config: str = "vp/digits") -> list[str]:
    return [
        f"--config={ROOT / 'configs' / (config + '.py')}",
        f"--mode={mode}",
        f"--workdir={workdir}",
        *TINY,
        *extra,
    ]
