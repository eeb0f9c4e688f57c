"""``--mode train``."""

from __future__ import annotations

from pathlib import Path

from experiment.build import build_sampler, pick_device
from experiment.config import Config
from experiment.config.checks import check_config, check_eval_names, check_schedule
from runtime.memory import explain_out_of_memory
from runtime.processes.collectives import is_lost_peer, process_group
from runtime.processes.ranks import ALONE, LostRankError, Ranks
from training.job import train_as_rank


def train(config: Config, workdir: Path, *, init_from: str = "", ranks: Ranks = ALONE) -> None:
    """Train, or go on training from the newest good checkpoint, up to ``training.num_steps``.

    Under torchrun each process computes its part of every batch, and rank 0 alone writes and speaks.

    Args:
        config: The config.
        workdir: The work directory.
        init_from: Another run's work directory, or a checkpoint in one, with whose averaged weights a run begins that
            has no checkpoint yet; "" is none.
        ranks: The processes of the job.

    Raises:
        ValueError: If the config cannot work; nothing is written then.
        FloatingPointError: If too many losses in a row are not finite; the last checkpoint is kept.
        MemoryError: If the memory does not suffice.
        LostRankError: If another process of the job is gone.
        Interrupted: After Ctrl-C, SIGTERM or SIGUSR1, with a checkpoint of that moment written.
    """
    check_config(config)
    check_schedule(config)
    check_eval_names(config)
    build_sampler(config)
    device = ranks.device(pick_device(config))
    with (
        process_group(ranks, device),
        explain_out_of_memory("training.batch_size", config.training.batch_size, training=True),
    ):
        try:
            train_as_rank(config, workdir, ranks, device, init_from)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            said = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            raise LostRankError(
                f"another process of the job is gone ({said}); look for what ended it, then the same command goes on "
                "from the newest checkpoint"
            ) from error
