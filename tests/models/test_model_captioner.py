"""A captioner: the law of its captions, greedy decoding, and what a few captions teach it."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from benchmarks.recaptioning import caption_noise, recovered, told_by
from data import DataError, ImageDataset, Vocabulary, load_dataset
from data.sources.scene_words import scenes_of
from models.text.captioner import Captioner
from training.text.captioning import train_captioner


@pytest.fixture(scope="module")
def clean() -> ImageDataset:
    dataset = load_dataset("scenes", root=".", split="train", options={"num_images": 40})
    assert isinstance(dataset, ImageDataset)
    return dataset


@pytest.fixture
def small() -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        captioner = Captioner((1, 8, 8), Vocabulary(("big", "red", "zero")), max_words=3, features=16)
        captioner.log_prob(images(16), torch.ones(16, 3, dtype=torch.int64))  # statistics of images
    # an untrained one says the same of all images; make it look and decide
    captioner.embed.weight.data *= 0.1
    captioner.choose.weight.data *= 8
    for layer in captioner.decoder.layers:
        layer.multihead_attn.out_proj.weight.data *= 4  # pyright: ignore
    return captioner.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_probabilities_of_all_captions_of_an_image_sum_to_one(small: Captioner):
    words = small.vocabulary.words
    every = [" ".join(some) for length in (1, 2, 3) for some in product(words, repeat=length)]
    assert len(every) == 3 + 9 + 27
    for x0 in images().split(1):
        logs = small.log_prob_of(x0.expand(len(every), -1, -1, -1), every)
        assert float(logs.double().exp().sum()) == pytest.approx(1, abs=1e-5)
        assert float(logs.std()) > 0.1


def test_greedy_decoding_takes_the_likeliest_word_of_each_step(small: Captioner):
    words = small.vocabulary.words
    x0 = images(16)
    found = small.caption(x0)
    assert {len(caption.split()) for caption in found} == {1, 2, 3}
    for one, caption in zip(x0.split(1), found, strict=True):
        said: list[str] = []
        while len(said) < 3:
            # p(the caption begins so): the sum over all captions that do
            rest = [[*said, w, *more] for w in words for n in range(3 - len(said)) for more in product(words, repeat=n)]
            logs = small.log_prob_of(one.expand(len(rest), -1, -1, -1), [" ".join(some) for some in rest]).double()
            totals = {w: logs[[some[len(said)] == w for some in rest]].exp().sum().item() for w in words}
            ends = small.log_prob_of(one, [" ".join(said)]).double().exp().item() if said else 0.0
            best = max(totals, key=totals.__getitem__)
            if ends > totals[best]:
                break
            said.append(best)
        assert caption == " ".join(said)


def test_no_caption_depends_on_the_other_images_of_its_batch(small: Captioner):
    x0 = images(20)
    captions = small.caption(x0)
    assert captions == tuple(small.caption(one)[0] for one in x0.split(1))
    logs = small.log_prob_of(x0, captions)
    torch.testing.assert_close(
        torch.cat([small.log_prob_of(x0[i : i + 1], captions[i : i + 1]) for i in range(20)]), logs
    )
    # words that follow change nothing of what was said of those before
    words = small.vocabulary.numbers(["big red", "big zero"], 2)
    first, second = small._next(small._encode(x0[:1].expand(2, -1, -1, -1)), words)  # pyright: ignore
    torch.testing.assert_close(first[:2], second[:2])
    assert not torch.allclose(first[2], second[2])


def test_the_same_seed_gives_the_same_captioner_and_leaves_the_global_generator(clean: ImageDataset):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (
        train_captioner(clean, num_steps=2, batch_size=4, features=8, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["choose.weight"], other["choose.weight"])


def test_noisy_captions_are_learned_from_in_the_words_of_clean_ones_and_kept_apart(clean: ImageDataset):
    """Of noisy captions only words of clean ones are learned from, and a caption without any not at all."""
    captions = clean.captions or ()
    few: dict[str, Any] = {"num_steps": 4, "batch_size": 4, "features": 8}
    some, one = (replace(clean, captions=("unheard", *captions[1:k], *["unheard"] * (40 - k))) for k in (40, 2))
    found = [train_captioner(clean.subset(8), noisy, **few) for noisy in (None, some, one, clean.subset(2))]
    weights = [captioner.choose.weight for captioner in found]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    assert all(captioner.vocabulary == found[0].vocabulary for captioner in found)
    # image 1 alone is drawn
    alone = replace(clean, images=clean.images[1:2], labels=clean.labels[1:2], captions=captions[1:2], sample_names=())
    assert torch.equal(train_captioner(clean.subset(8), alone, **few).choose.weight, weights[2])


def test_wrong_captions_do_not_change_what_is_said_as_of_clean_ones(clean: ImageDataset):
    eight = clean.subset(8)
    wrong = replace(eight, captions=("a red zero above a red zero",) * 8)
    captioner = train_captioner(eight, wrong, num_steps=100, batch_size=16, features=32, augment=False)
    x0 = eight.space.encode(eight.images)
    assert captioner.caption(x0) == eight.captions
    words = captioner.vocabulary.numbers(wrong.captions or (), captioner.max_words)
    as_noisy, as_clean = (captioner.log_prob(x0, words, torch.full((8,), kind)) for kind in (True, False))
    assert float(as_noisy.min()) > -3 and float(as_clean.max()) < -5


def test_eight_captions_are_learned_by_heart(clean: ImageDataset):
    eight = clean.subset(8)
    captioner = train_captioner(eight, num_steps=80, batch_size=8, features=32, augment=False)
    x0 = eight.space.encode(eight.images)
    assert eight.captions is not None and captioner.caption(x0) == eight.captions
    assert float(captioner.log_prob_of(x0, eight.captions).min()) > -4.0


def test_noise_of_captions_costs_what_the_closed_form_says():
    for rho in (0.0, 0.2, 0.5):
        for name, found in caption_noise(rho, 2000).items():
            assert abs(found["value"] - found["expected"]) <= 3 * found["stderr"], (rho, name)
    assert caption_noise(0.5, 20)["all"]["expected"] == pytest.approx(0.5, abs=1e-3)
    assert recovered(1.0, 0.6) == 1 and recovered(0.6, 0.6) == 0 and recovered(0.8, 0.6) == pytest.approx(0.5)
    assert told_by(["a red three above a small blue seven", "a red"])[1] is None
    assert told_by([scenes_of("train", 1)[0].caption])[0] == scenes_of("train", 1)[0]


def refuses(work, *words: str) -> None:
    with pytest.raises((DataError, ValueError)) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and ";" in message and all(word in message for word in words), message


def test_bad_input_is_refused_in_one_line(small: Captioner, clean: ImageDataset):
    x0 = images(1)
    refuses(lambda: small.log_prob_of(x0, ["big rad zero"]), "unknown word 'rad'", "red")
    refuses(lambda: small.log_prob_of(x0, ["!"]), "must have a word")
    refuses(lambda: small.log_prob_of(x0, ["big red zero red"]), "at most 3 words", "big red zero red")
    refuses(lambda: small.caption(x0[:, :, :4]), "[B, 1, 8, 8]", "[1, 1, 4, 8]")
    refuses(lambda: train_captioner(clean.subset(7)), "at least 8 captions, got 7")
    refuses(lambda: train_captioner(replace(clean, captions=None)), "scenes has no captions")
    refuses(lambda: train_captioner(replace(clean, captions=("?", *(clean.captions or ())[1:]))), "must have a word")
    strange = replace(clean, captions=("unheard",) * 40)
    refuses(lambda: train_captioner(clean, strange, num_steps=1), "no caption of scenes has a word of the clean ones")
    refuses(lambda: Captioner((1, 8, 8), Vocabulary(()), max_words=3), "known words must be at least 1, got 0")
    refuses(lambda: Captioner((1, 8, 8), Vocabulary(("red",)), max_words=3, features=9), "multiple of 8, got 9")
    assert math.isfinite(float(small.log_prob_of(x0, ["BIG, red!"])))
