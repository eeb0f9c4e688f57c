"""T5's text encoder by transformers: hidden states of its own, masks, and published sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.text import TransformersEncoder

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
CAPTIONS = ["a red three above a small blue seven", "seven", "a small red seven", ""]
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
# T5 v1.1: parameters of the encoder alone, with its embedding of tokens
PUBLISHED = {
    "small": (35_332_800, {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}),
    "base": (109_628_544, {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}),
    "large": (341_231_104, {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}),
}


def config_of(vocabulary: int, **sizes: int):
    return transformers.T5Config(
        vocab_size=vocabulary, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with random weights, whose tokenizer knows whole words alone."""
    path = tmp_path_factory.mktemp("t5")
    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in WORDS))]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **specials).save_pretrained(path)
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(config_of(len(pieces), d_model=16, d_ff=24, num_layers=2, num_heads=2))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(path)
    return path


def alone(folder: Path, caption: str) -> Tensor:
    """The hidden states of a caption that nothing fills, by transformers itself."""
    model = transformers.T5EncoderModel.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)([caption], return_tensors="pt").input_ids
    assert ids[0, -1] == 1 and ids.shape[1] == len(caption.split()) + 1
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state[0]


def test_tokens_are_those_of_transformers_whatever_fills(folder: Path):
    encoder = TransformersEncoder(folder)
    assert type(encoder.model).__name__ == "T5EncoderModel" and not encoder.model.training
    assert (encoder.max_length, encoder.features, encoder.pooled_features, encoder.pooling) == (16, 16, 16, "mean")
    text = encoder.encode(CAPTIONS)
    shorter = TransformersEncoder(folder, max_length=9).encode(CAPTIONS)
    assert text.tokens.shape == (4, 16, 16) and text.mask.sum(1).tolist() == [9, 2, 5, 1]
    for k, caption in enumerate(CAPTIONS):
        expected, found = alone(folder, caption), text.tokens[k][text.mask[k]]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(shorter.tokens[k][shorter.mask[k]], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(text.pooled[k], expected.mean(0), rtol=0, atol=1e-6)
    # without the mask, what fills is attended to
    unmasked = TransformersEncoder(folder, masked=False).encode(CAPTIONS)
    moved = (unmasked.tokens - text.tokens).abs().flatten(2).amax(2)
    assert bool(unmasked.mask.all()) and bool((moved[text.mask] > 1e-3).all())


def test_places_are_relative(folder: Path):
    """A bias of the distance between two tokens is all that is known of places: it tells words in another order."""
    encoder = TransformersEncoder(folder)
    one, other = (encoder.encode([caption]).tokens[0] for caption in ("red three", "three red"))
    assert float((one[0] - other[1]).abs().max()) > 1e-3
    for block in encoder.model.encoder.block:
        bias = getattr(block.layer[0].SelfAttention, "relative_attention_bias", None)
        if bias is not None:
            bias.weight.zero_()
    one, other = (encoder.encode([caption]).tokens[0] for caption in ("red three", "three red"))
    torch.testing.assert_close(one[[1, 0, 2]], other[:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_encoders_have_the_published_size(name: str):
    size, sizes = PUBLISHED[name]
    with torch.device("meta"):
        model = transformers.T5EncoderModel(config_of(32_128, **sizes))
    assert sum(weights.numel() for weights in model.parameters()) == size
