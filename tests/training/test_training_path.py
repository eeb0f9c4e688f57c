"""The way of an image through a training step stays short enough to be read."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from training_runs import CPU, ROOT, digits_like

from experiment.config import load_config
from training.build import build_options, build_state
from training.trainer import Trainer


def test_an_image_passes_at_most_30_functions_in_12_files():
    """From the data set to ``optimizer.step()``, without the network and what scales its input and output (models/)."""
    config = load_config(str(ROOT / "configs/vp/digits.py"), ["--config.model.channels=16"])
    dataset = digits_like(80)
    state = build_state(config, dataset.kind, CPU)
    trainer = Trainer(state, dataset, build_options(config))
    trainer.step()
    passed: set[tuple[str, str, int]] = set()
    root = str(ROOT)

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(root) or code.co_name.startswith("<"):
            return
        path = Path(code.co_filename).relative_to(ROOT)
        ours = path.parts[0] in ("training", "data", "sde_lib", "runtime", "experiment", "evaluation", "likelihood")
        if ours and path.as_posix() != "experiment/precision.py":
            passed.add((path.as_posix(), code.co_name, code.co_firstlineno))

    state.optimizer.register_step_pre_hook(lambda *_: sys.setprofile(None))
    sys.setprofile(note)
    try:
        trainer.step()
    finally:
        sys.setprofile(None)
    files = {path for path, _, _ in passed}
    assert ("training/trainer.py", "step") in {(path, name) for path, name, _ in passed}
    assert len(passed) <= 30 and len(files) <= 12, sorted(passed)
