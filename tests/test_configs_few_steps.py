"""Every config of a student of few steps, or of a generator, has the network of its teacher's config."""

from pathlib import Path

import pytest

from configs.default import get_default_config
from experiment.build import build_sampler
from experiment.config import load_config
from experiment.config.checks import check_config, check_schedule
from experiment.distillation.stages import stages_of
from experiment.distillation.teacher import _OWN
from experiment.frozen.named import check_same

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs" / "distill").glob("*.py") if "distilled(" in path.read_text()
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name != "family"])
def test_a_student_has_the_network_of_its_teacher_and_is_drawn_from_as_it_answers(name: str):
    config = load_config(str(ROOT / "configs/distill" / f"{name}.py"), defaults=get_default_config())
    check_config(config)
    check_schedule(config)
    named = config.distillation.teacher
    theirs = load_config(str(ROOT / f"configs/{named.removeprefix('runs/')}.py"), defaults=get_default_config())
    check_same(config, theirs, named, free=_OWN, fix="")
    sampler = build_sampler(config)
    if config.model.answers == "steps":
        stages = stages_of(config)
        assert config.training.num_steps == stages.total and sampler.ddim_steps == stages.num_steps[-1]  # pyright: ignore
        assert config.training.checkpoint_every == stages.length
        assert config.training.keep_checkpoints == len(stages.num_steps)
    else:
        assert (type(sampler).__name__, sampler.num_steps) == ("ConsistencySampler", 1)  # pyright: ignore
