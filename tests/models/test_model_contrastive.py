"""A contrastive pair: its loss, its vectors, and what a few steps teach it."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.prior import measure, ranks_of_own
from data import DataError, ImageDataset, Vocabulary, load_dataset
from models.backbones import WordEncoder
from models.contrastive import MAX_LOG_SCALE, ContrastivePair, ImageEncoder, contrastive_loss
from training.text.contrastive import train_pair

CAPTION = "a red three above a small blue seven"


@pytest.fixture(scope="module")
def train() -> ImageDataset:
    dataset = load_dataset("scenes", root=".", split="train", options={"num_images": 600})
    assert isinstance(dataset, ImageDataset)
    return dataset


@pytest.fixture(scope="module")
def pair(train: ImageDataset) -> ContrastivePair:
    return train_pair(train, features=16, num_steps=40, batch_size=32)


def test_the_loss_is_that_of_finding_either_among_the_others():
    u, w = (F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(k)).double(), dim=1) for k in (0, 1))
    expected = 0.0
    for i in range(5):
        for one, others in ((u[i], w), (w[i], u)):
            scores = [math.exp(7 * float(one @ other)) for other in others]
            expected -= math.log(scores[i] / sum(scores)) / 10
    assert float(contrastive_loss(u, w, torch.tensor(7.0))) == pytest.approx(expected, abs=1e-12)
    # of a pair that knows nothing, and of one that knows all
    same = u[:1].expand(5, 3)
    assert float(contrastive_loss(same, same, torch.tensor(100.0))) == pytest.approx(math.log(5), abs=1e-9)
    assert float(contrastive_loss(torch.eye(5), torch.eye(5), torch.tensor(100.0))) < 1e-9


def test_a_few_steps_tell_images_apart(pair: ContrastivePair, train: ImageDataset):
    test = load_dataset("scenes", root=".", split="test", options={"num_images": 2000})
    assert isinstance(test, ImageDataset) and test.captions is not None
    x0 = test.space.encode(test.images)
    words = pair.vocabulary.numbers(test.captions, pair.text_encoder.max_words)
    assert float(pair.loss(x0, words)) < math.log(100) - 0.3
    ranks = ranks_of_own(pair.embed_images(x0), pair.embed_captions(test.captions), group=100)
    assert float(ranks.double().mean()) < 38  # 50.5 by chance
    # with images against the captions of others nothing is left
    assert float(pair.loss(x0, words.roll(1, 0))) > math.log(100) - 0.2


def test_the_same_seed_gives_the_same_pair_and_leaves_the_global_generator(train: ImageDataset):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (train_pair(train, num_steps=2, batch_size=8, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["project_image.weight"], other["project_image.weight"])


def test_embeddings_have_a_mean_square_of_one_and_do_not_depend_on_the_batch(
    pair: ContrastivePair, train: ImageDataset
):
    z = pair.embed_images(train.space.encode(train.images))
    assert train.captions is not None
    c = pair.embed_captions(train.captions)
    for found in (z, c):
        assert found.shape == (600, 16)
        torch.testing.assert_close(found.square().mean(1), torch.ones(600))
    torch.testing.assert_close(pair.embed_images(train.space.encode(train.images[7:8])), z[7:8])
    torch.testing.assert_close(pair.embed_captions(train.captions[7:8]), c[7:8])


def test_the_scale_is_at_most_100(pair: ContrastivePair):
    low = pair.log_scale.clone()
    pair.clamp_scale()
    assert torch.equal(pair.log_scale, low)
    small = ContrastivePair(
        ImageEncoder((1, 8, 8), features=8), WordEncoder(num_words=1, features=4, max_words=2), Vocabulary(("red",))
    )
    small.log_scale.data.fill_(9.0)
    small.clamp_scale()
    assert small.log_scale.item() == pytest.approx(MAX_LOG_SCALE) == pytest.approx(math.log(100))


def test_ranks_are_counted_within_groups():
    gallery = torch.eye(6)
    queries = torch.eye(6) + 0.5
    assert ranks_of_own(queries, gallery, group=3).tolist() == [1] * 6
    queries[4] = torch.tensor([9.0, 9.0, 9.0, 3.0, 1.0, 2.0])
    assert ranks_of_own(queries, gallery, group=3).tolist() == [1, 1, 1, 1, 3, 1]
    assert ranks_of_own(queries, gallery, group=6)[4] == 6
    with pytest.raises(ValueError, match="group must divide the 6 queries, got 4; "):
        ranks_of_own(queries, gallery, group=4)


def test_draws_of_the_exact_conditional_find_captions_as_often_as_images_do():
    generator = torch.Generator().manual_seed(0)
    captions, *noise = torch.randn(4, 4000, 8, generator=generator).double()
    images, *draws = (captions + 0.8 * one for one in noise)
    found = measure(images, captions, draws, group=200)
    same = found["paired"]["(draw -> captions) - (image -> captions)"]
    assert abs(same["value"]) < 4 * same["stderr"] and same["stderr"] < 0.02
    alike = found["cosine"]["(draw, image) - (draw, draw)"]
    assert abs(alike["value"]) < 4 * alike["stderr"] and alike["stderr"] < 0.01
    # draws of another law are told
    other = measure(images, captions, [captions + 0.2 * one for one in noise[1:]], group=200)
    assert other["cosine"]["(draw, image) - (draw, draw)"]["value"] < -20 * alike["stderr"]
    assert other["paired"]["(draw -> captions) - (image -> captions)"]["value"] > 0.1


def refuses(work, *words: str) -> None:
    with pytest.raises((DataError, ValueError)) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and ";" in message and all(word in message for word in words), message


def test_bad_input_is_refused_in_one_line(pair: ContrastivePair, train: ImageDataset):
    digits = load_dataset("digits", root=".", split="train")
    assert isinstance(digits, ImageDataset)
    refuses(lambda: train_pair(digits), "digits has no captions")
    refuses(lambda: train_pair(train, batch_size=1), "batch_size must be 2 .. 600", "got 1")
    refuses(lambda: pair.embed_captions([]), "at least 1, got 0")
    refuses(lambda: pair.embed_captions(["a rad three"]), "unknown word 'rad'", "red")
    refuses(lambda: pair.embed_captions([f"{CAPTION} {CAPTION}"]), f"at most {pair.text_encoder.max_words} words")
    refuses(lambda: pair.embed_images(torch.zeros(2, 1, 16, 16)), "[B, 3, 16, 16]", "[2, 1, 16, 16]")
    refuses(lambda: ImageEncoder((1, 8, 8), features=9), "multiple of 8, got 9")
    refuses(lambda: ContrastivePair(pair.image_encoder, pair.text_encoder, Vocabulary(("red",))), "the 1 words", "got")
