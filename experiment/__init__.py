"""One run: from a config to objects, its work directory and its checkpoints."""

from .trained_run import TrainedRun, load_run
