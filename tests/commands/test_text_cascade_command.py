"""A cascade of stages that are told captions, from the command line, as in Imagen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT, error, tiny_command

import main
from benchmarks import scenes
from configs.default import get_default_config
from data import ImageKind, TextKind, load_dataset, make_conditions
from evaluation.scenes import SceneReader
from experiment import load_run
from experiment.build import build_sde
from experiment.conditions import Conditions, build_conditions
from experiment.config import load_config, load_stages
from experiment.text.prompts import observed_prompts
from samplers import make_sampler
from tasks import Cascade, Stage, check_stages

STAGES = ("scenes_16", "scenes_sr")
# 8x8 and 16x16 of scikit-learn's digits in place of MNIST, whose files need not be there
SMALL = (
    "--config.data.options=num_images=60", "--config.model.attention_resolutions=8", "--config.model.num_heads=1",
    "--config.model.condition_dropout=0.5", "--config.optim.decay_steps=0", "--config.optim.learning_rate=0.02",
    "--config.training.num_steps=2", "--config.training.batch_size=2", "--config.eval.num_images=2",
    "--config.eval.vlb_num_steps=2", "--config.sampling.num_steps=2", "--config.sampling.num_samples=3",
)  # fmt: skip
PROMPT, OTHER = "a red three above a small blue seven", "a white zero left of a big green one"


def command(mode: str, workdir: Path, *extra: str, config: str = "scenes_cascade") -> list[str]:
    return tiny_command(mode, workdir, *SMALL, *extra, config=f"text/{config}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("text_cascade") / "run"
    assert main.run(command("train", workdir)) == 0
    return workdir


def drawn(workdir: Path, folder: Path, *extra: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of both stages."""
    assert main.run(command("sample", workdir, f"--output={folder}", *extra)) == 0
    return np.load(folder / "stages" / "scenes_16.npz")["arr_0"], np.load(folder / "samples.npz")["arr_0"]


def test_every_stage_hears_the_prompt_at_any_batch_size(trained: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n{OTHER}\n")
    one = drawn(trained, tmp_path / "one", f"--prompt={PROMPT}", "--config.sampling.batch_size=1")
    two = drawn(trained, tmp_path / "two", f"--prompts={tmp_path / 'prompts.txt'}", "--config.sampling.batch_size=2")
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours[::2], theirs[::2])
        assert (ours[1] != theirs[1]).any()
    assert (tmp_path / "two" / "captions.txt").read_text().splitlines() == [PROMPT, OTHER, PROMPT]
    # text stands under the pictures
    height, width, _ = np.asarray(Image.open(tmp_path / "one" / "grid.png")).shape
    assert height > 2 / 3 * width
    said = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert said["input"] == PROMPT


def test_a_stage_without_the_caption_draws_otherwise(trained: Path):
    runs = [load_run(trained / name, device="cpu") for name in STAGES]
    cascade = Cascade([Stage.of(run, make_sampler("ddim", num_steps=2)) for run in runs], noise_t=[0.1])
    small, large = (observed_prompts(run.config, run.conditions, [PROMPT] * 2)[0].texts for run in runs)
    told, dropped = (
        cascade.sample(range(2), captions=[small, one]).x0
        for one in (large, {"words": torch.zeros_like(large["words"])})
    )
    assert torch.equal(told[0], dropped[0]) and not torch.equal(told[1], dropped[1])
    with pytest.raises(ValueError, match=r"captions must be for 2 stages, of which 0, 1 are told them, got 0"):
        cascade.sample(range(2))
    with pytest.raises(ValueError, match="got 2, of which 0 have them; pass one mapping a stage"):
        cascade.sample(range(2), captions=[small, {}])


def test_without_a_prompt_captions_are_those_of_a_split(trained: Path, tmp_path: Path):
    found = drawn(trained, tmp_path / "split", "--config.sampling.condition_split=train")
    captions = load_dataset("scenes", root="-", split="train", options={"num_images": 60}).captions
    assert captions is not None
    assert (tmp_path / "split" / "captions.txt").read_text().splitlines() == list(captions[:3])
    (tmp_path / "prompts.txt").write_text("\n".join(captions[:3]))
    told = drawn(trained, tmp_path / "told", f"--prompts={tmp_path / 'prompts.txt'}")
    for ours, theirs in zip(found, told, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_guidance_is_of_each_stage_and_away_from_a_text_in_all(trained: Path, tmp_path: Path):
    prompt = f"--prompt={PROMPT}"
    plain = drawn(trained, tmp_path / "plain", prompt)
    last = drawn(trained, tmp_path / "last", prompt, "--config.cascade.guidance_weight=1,3")
    np.testing.assert_array_equal(last[0], plain[0])
    assert (last[1] != plain[1]).any()
    both = ("--config.sampling.guidance_weight=3", "--config.sampling.negative_prompt")
    away = drawn(trained, tmp_path / "away", prompt, both[0], f"{both[1]}={OTHER}")
    # away from what is asked for there is nowhere to go: the small image is told on either side
    itself = drawn(trained, tmp_path / "itself", prompt, both[0], f"{both[1]}={PROMPT}")
    for k in range(2):
        np.testing.assert_array_equal(itself[k], plain[k])
        assert (away[k] != plain[k]).any()


def test_the_bits_of_both_stages_given_the_caption_add_up(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(command("eval", trained)) == 0
    bits = {name: np.load(trained / name / "eval" / "per_image.npz")["vlb"] for name in STAGES}
    expected = (3 * 8 * 8 * bits["scenes_16"] + 3 * 16 * 16 * bits["scenes_sr"]) / (3 * 16 * 16)
    np.testing.assert_allclose(np.load(trained / "eval" / "per_image.npz")["vlb"], expected, rtol=1e-12)
    assert "; given text, EMA weights" in capsys.readouterr().out


def test_one_stage_enlarges_given_images_by_a_prompt(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small, _ = drawn(trained, tmp_path / "cascade", f"--prompt={PROMPT}")
    np.savez(tmp_path / "small.npz", arr_0=small)

    def enlarged(name: str, *extra: str) -> np.ndarray:
        arguments = command("sample", trained / "scenes_sr", f"--output={tmp_path / name}", *extra, config="scenes_sr")
        assert main.run(arguments) == 0
        return np.load(tmp_path / name / "samples.npz")["arr_0"]

    given = f"--input={tmp_path / 'small.npz'}"
    found, other = enlarged("one", given, f"--prompt={PROMPT}"), enlarged("other", given, f"--prompt={OTHER}")
    assert (found != other).any()
    np.testing.assert_array_equal(
        enlarged("fewer", given, f"--prompt={PROMPT}", "--config.sampling.batch_size=1"), found
    )
    assert (tmp_path / "one" / "captions.txt").read_text() == f"{PROMPT}\n" * 3
    alone = error(capsys, command("sample", trained / "scenes_sr", given, config="scenes_sr"))
    assert "the model is told captions, which no file has; leave out --input or --hint, or add --prompt" in alone


@pytest.mark.parametrize(
    ("mode", "extra", "message"),
    [
        ("sample", ["--prompt=a red tree"], "stage scenes_16: unknown word 'tree'"),
        ("sample", ["--prompt=a red", "--prompts=p"], "--prompt and --prompts were both given"),
        ("sample", ["--config.cascade.guidance_weight=2"], "must be one for each of 2 stages, got 1"),
        ("sample", ["--config.sampling.negative_prompt=a blue"], "sampling.negative_prompt needs guidance"),
        ("train", ["--prompt=a red"], "--prompt is a flag of --mode sample, got --mode train"),
        ("edit", [], "--mode edit is of one model, got a cascade"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], mode: str, extra: list[str], message: str
):
    assert message in error(capsys, command(mode, trained, *extra))


def test_the_stages_of_the_config_are_of_one_sde_and_of_the_same_scenes():
    path, defaults = str(ROOT / "configs/text/scenes_cascade.py"), get_default_config()
    cascade = load_config(path, defaults=defaults)
    stages = load_stages(cascade, path, defaults=defaults)
    kinds = [ImageKind((3, side, side), 256, text=TextKind(("red",))) for side in (16, 32)]
    told = [build_conditions(one, kind) for one, kind in zip(stages.values(), kinds, strict=True)]
    most = [one.model.condition_noise_t for one in stages.values()]
    check_stages(list(stages), told, cascade.cascade.noise_t, most)
    assert len({str(build_sde(one)) for one in stages.values()}) == 1
    assert {one.data.options for one in stages.values()} == {"base=mnist"}
    assert [one.data.downscale for one in stages.values()] == [(2,), ()]


def test_a_later_stage_is_told_captions_only_if_the_first_is():
    told = ImageKind((3, 8, 8), 17, text=TextKind(("red",)))
    stages = [Conditions(ImageKind((3, 4, 4), 65)), Conditions(told, makers=make_conditions(("lowres", "text")))]
    with pytest.raises(ValueError, match="stage second is told captions, which the first stage, first, is not told"):
        check_stages(["first", "second"], stages, [0.0], [0.0, 0.0])


def test_samples_in_a_folder_are_graded_by_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    test = load_dataset("scenes", root="-", split="test", options={"num_images": 200})
    folder, output = tmp_path / "samples", tmp_path / "grades.json"
    folder.mkdir()
    pixels = test.space.pixels(test.space.encode(test.images))  # pyright: ignore
    np.savez(folder / "samples.npz", arr_0=pixels)
    (folder / "captions.txt").write_text("\n".join(test.captions or ()))

    def says_zero(crops: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(crops), dtype=torch.int64), 10)

    reader: Any = SceneReader(says_zero, test.image_shape)  # type: ignore[arg-type]
    monkeypatch.setattr(scenes, "train_reader", lambda base: {"digits": reader}[base])
    scenes.main([f"--samples={folder}", f"--output={output}"])
    grades = json.loads(output.read_text())
    # of true scenes all is right but their digits, of which about a tenth are zeros
    assert [grades[str(folder)][name]["value"] for name in ("size", "colour", "relation")] == [1, 1, 1]
    assert grades[str(folder)]["digit"]["value"] < 0.4 and grades[f"chance of {folder}"]["colour"] < 0.3
    with pytest.raises(SystemExit, match="holds no samples of captions of scenes"):
        scenes.main([f"--samples={tmp_path}", f"--output={output}"])
