"""Students of a network that was imported: distilled, and drawn from without it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign_checkpoints import WRITERS
from tiny import last_tensors

import main

# loss, sampler, network calls and the settings of the distillation
STUDENTS = {
    "consistency": ("consistency_tuning", "consistency", 2, {}),
    "steps": ("progressive_distillation", "ddim", 2, {"stages": (4, 2), "stage_steps": 2}),
    "generator": ("distribution_matching", "consistency", 1, {"ratio": 1}),
}


@pytest.mark.parametrize("answers", STUDENTS)
def test_an_imported_network_teaches(answers: str, tmp_path: Path):
    foreign, teacher = WRITERS["diffusers"](tmp_path), tmp_path / "teacher"
    assert main.run(foreign.command("import", teacher)) == 0
    loss, sampler, num_steps, settings = STUDENTS[answers]
    config = tmp_path / "student.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\nfrom configs.vp import digits\n\n\ndef get_config():\n"
        "    config = digits.get_config()\n    config.sde = ConfigDict()\n"
        f"    config.model = ConfigDict({{'backbone': 'teacher', 'answers': '{answers}'}})\n"
        f"    config.training.loss = '{loss}'\n    config.distillation.update({settings})\n"
        f"    config.distillation.teacher = '{teacher}'\n"
        f"    config.sampling.update({{'sampler': '{sampler}', 'num_steps': {num_steps}}})\n    return config\n"
    )
    workdir, drawn = tmp_path / "run", tmp_path / "drawn"
    short = ("--config.device=cpu", "--config.training.num_steps=4", "--config.training.batch_size=4")
    command = [f"--config={config}", f"--workdir={workdir}", *short]
    assert main.run([*command, "--mode=train"]) == 0
    theirs = last_tensors(teacher)
    ours = {name: tensor for name, tensor in last_tensors(workdir).items() if name in theirs}
    # it began with the teacher's weights, and has taken few steps from them
    moved = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert len(ours) == len(theirs) and 0 < moved < 0.02
    shutil.rmtree(teacher)
    assert main.run([*command, "--mode=sample", f"--output={drawn}", "--config.sampling.num_samples=3"]) == 0
    assert np.load(drawn / "samples.npz")["arr_0"].shape == (3, 8, 8, 1)
