"""Rewritten captions as an option of scenes and folders, mixed with the originals, and written by a captioner."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT, error, tiny_command

import main
from data import ImageDataset, Vocabulary, captioned_as, load_dataset, mix_captions, read_caption_list
from data.sources.scene_words import captions_of
from models.text.captioner import Captioner
from tasks.captions import write_captions

FEW = {"num_images": 40}


def load(split: str = "train", **options: object) -> ImageDataset:
    dataset = load_dataset("scenes", root=".", split=split, options=FEW | options)
    assert isinstance(dataset, ImageDataset)
    return dataset


def write(path: Path, captions: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"file": name, "caption": text}) + "\n" for name, text in captions.items()))
    return path


@pytest.fixture
def rewritten(tmp_path: Path) -> Path:
    names = [f"train/{i}" for i in range(40)] + ["test/0", "test/1"]
    return write(tmp_path / "new.jsonl", {name: f"new words of {name}" for name in names})


def test_an_image_is_told_the_rewritten_caption_by_a_draw_of_its_name_alone():
    names = [f"train/{i}" for i in range(4000)]
    originals, new = ({name: kind for name in names} for kind in ("old", "new"))
    told = {share: mix_captions(originals, new, share=share) for share in (0.0, 0.5, 0.95, 1.0)}
    assert set(told[0.0].values()) == {"old"} and set(told[1.0].values()) == {"new"}
    for share, low in ((0.95, 0.5), (0.5, 0.0)):
        chosen = {name for name, kind in told[share].items() if kind == "new"}
        assert abs(len(chosen) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
        assert chosen > {name for name, kind in told[low].items() if kind == "new"}
    assert mix_captions(originals, new) == told[0.95]
    # neither other images nor their order matter
    few = names[::-7]
    assert mix_captions({n: "old" for n in few}, {n: "new" for n in few}) == {n: told[0.95][n] for n in few}
    # an image with one of the two is told that
    assert mix_captions({"a": "old"}, {"b": "new"}, share=0.0) == {"a": "old", "b": "new"}


def test_scenes_are_told_rewritten_captions(rewritten: Path):
    plain, all_, mixed = load(), load(recaptioned=str(rewritten), recaptioned_share=1), load(recaptioned=str(rewritten))
    assert all_.captions == tuple(f"new words of train/{i}" for i in range(40)) and all_.notes == ()
    assert torch.equal(all_.images, plain.images) and plain.sample_names == all_.sample_names
    expected = mix_captions(
        dict(zip(plain.sample_names, plain.captions or (), strict=True)), read_caption_list(rewritten)
    )
    assert mixed.captions == tuple(expected[name] for name in mixed.sample_names)
    assert (
        len({one.captions_digest for one in (plain, all_, mixed)}) == 3 and plain.subset(3).sample_names[2] == "train/2"
    )
    # one image of the test split has no more than its own
    write(rewritten, read_caption_list(rewritten) | {"test/7": "of no image"} | {"test/1": ""})
    test = load("test", recaptioned=str(rewritten), recaptioned_share=1)
    assert test.captions == ("new words of test/0", captions_of("test", 2)[1])
    assert test.notes == (
        "images without a rewritten caption, which keep what they have: 1 of 2",
        "rewritten captions of images that are not there, left out: 1, such as test/7",
    )


def test_a_folder_is_told_rewritten_captions_and_images_that_had_none_too(tmp_path: Path):
    for level, name in enumerate(("train/a/1.png", "train/2.png", "train/3.png", "test/4.png"), start=1):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(tmp_path / "data" / name)
    write(tmp_path / "data" / "captions.jsonl", {"train/a/1.png": "one", "test/4.png": "four"})
    new = write(tmp_path / "new.jsonl", {"./train/a/1.png": "new one", "train/2.png": "new two", "val/5.png": "five"})

    def found(**options: object) -> tuple[dict[int, str], tuple[str, ...]]:
        dataset = load_dataset("folder", root=tmp_path / "data", split="train", options=options)
        assert isinstance(dataset, ImageDataset) and dataset.captions is not None
        assert len(dataset.sample_names) == len(dataset)
        return dict(zip(dataset.images[:, 0, 0, 0].tolist(), dataset.captions, strict=True)), dataset.notes

    assert found()[0] == {1: "one"}
    told, notes = found(recaptioned=str(new), recaptioned_share=1)
    assert told == {1: "new one", 2: "new two"}
    assert "rewritten captions of images that are not there, left out: 1, such as val/5.png" in notes
    assert "images without a rewritten caption, which keep what they have: 1 of 3" in notes
    assert "images without a caption, left out: 1 of 3" in notes
    assert found(recaptioned=str(new), recaptioned_share=0)[0] == {1: "one", 2: "new two"}
    # without captions of its own too
    (tmp_path / "data" / "captions.jsonl").unlink()
    assert found(recaptioned=str(new))[0] == {1: "new one", 2: "new two"}


def test_clean_captions_choose_images_and_what_is_written_is_read(tmp_path: Path):
    train = load()
    told, notes = captioned_as(train, {"train/3": "three", "train/1": "one", "test/0": "of the other split"})
    assert told.captions == ("one", "three") and told.sample_names == ("train/1", "train/3")
    assert torch.equal(told.images, train.images[[1, 3]])
    assert notes == ("captions of images that are not in the train split of scenes, left out: 1",)
    captioner = Captioner((3, 16, 16), Vocabulary(("naïve", "red")), max_words=2, features=8).eval()
    write_captions(tmp_path / "new.jsonl", captioner, [train, load("test")])
    read = load(recaptioned=str(tmp_path / "new.jsonl"), recaptioned_share=1)
    assert read.captions == captioner.caption(train.space.encode(train.images)) and read.notes == ()


def test_captions_that_do_not_fit_are_refused(tmp_path: Path, refuses, rewritten: Path):
    with refuses(
        f"recaptioned={rewritten} is of other data", "42 images, such as a/b.png", "some of 42, such as train/0"
    ):
        write(rewritten, {f"a/b.png{'x' * i}": "one" for i in range(42)})
        load(recaptioned=str(rewritten))
    for share in (-0.1, 1.5, True, "most"):
        with refuses("recaptioned_share must be a probability, 0 .. 1", share):
            mix_captions({}, {}, share=share)  # type: ignore[arg-type]
    with refuses(tmp_path / "gone.jsonl", "cannot be read"):
        load(recaptioned=str(tmp_path / "gone.jsonl"))
    rewritten.write_text('{"file": "train/0", "caption": "a"}\n{"file": "./train/0", "caption": "b"}\n')
    with refuses(f"{rewritten} line 2: train/0 has a caption already"):
        load(recaptioned=str(rewritten))
    with refuses("none of 1 captions is of an image of the train split of scenes, such as train/0"):
        captioned_as(load(), {"1.png": "one"})
    digits = load_dataset("digits", root=".", split="train")
    assert isinstance(digits, ImageDataset)
    with refuses("images of digits have no names"):
        write_captions(tmp_path / "x", Captioner((1, 8, 8), Vocabulary(("a",)), max_words=1, features=8), [digits])


def test_a_run_refuses_to_go_on_with_other_captions(
    tmp_path: Path, rewritten: Path, capsys: pytest.CaptureFixture[str]
):
    def command(num_steps: int) -> list[str]:
        return tiny_command(
            "train", tmp_path / "run", f"--config.data.options=num_images=40,recaptioned={rewritten}",
            "--config.model.attention_resolutions=8", "--config.optim.decay_steps=0",
            f"--config.training.num_steps={num_steps}", config="text/scenes",
        )  # fmt: skip

    assert main.run(command(1)) == 0
    assert main.run(command(2)) == 0
    for other in ("a big red two above a green one", "words that no scene has"):
        write(rewritten, read_caption_list(rewritten) | {"train/5": other})
        assert "was trained on other captions than those that scenes train has now" in error(capsys, command(3))


def test_the_example_writes_captions_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(ROOT / "examples" / "recaption.py"))["main"]
    config, few = str(ROOT / "configs" / "text" / "scenes.py"), "--config.data.options=num_images=40,wrong_captions=0.5"
    example(config, "16", [few], output=tmp_path / "new.jsonl", steps=1)
    assert "learned from 16 clean captions, wrote 42 in" in capsys.readouterr().out
    clean = write(tmp_path / "clean.jsonl", {f"train/{i}": text for i, text in enumerate(captions_of("train", 45))})
    example(config, str(clean), [few], output=tmp_path / "same.jsonl", steps=1)
    out = capsys.readouterr().out
    assert "captions of images that are not in the train split of scenes, left out: 5" in out and "from 40 clean" in out
    dataset = load(recaptioned=str(tmp_path / "new.jsonl"), recaptioned_share=1)
    assert dataset.captions is not None and dataset.notes == ()
