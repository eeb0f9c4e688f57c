"""Frozen text encoders by Hugging Face's transformers: T5, CLIP, BERT and their kin."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import EncodedText

POOLING = ("auto", "mean", "own", "none")
_AT_ONCE = 64  # captions encoded at once, whatever asks: the last digits depend on it
_MOST_TOKENS = 512  # of a tokenizer that sets no limit
_LIMITS = 10**6  # what transformers calls none is above


class TransformersEncoder(nn.Module):
    """A text encoder with its tokenizer, from a local folder, or from the hub if that is allowed.

    All texts are filled up to one length, so that a caption's tokens do not depend on those beside it; what fills is
    not attended to where ``masked``. The model stays in evaluation mode and float32.

    Args:
        path: Folder with ``config.json``, weights as ``safetensors`` and the tokenizer's files; or a name on the hub.
        tokenizer: Folder of the tokenizer; None for ``path``, or for the ``tokenizer`` beside it in a pipeline of
            diffusers.
        layer: Which hidden states are the tokens: -1 the last ones, after the model's last norm; -2 those before the
            last layer, as they are, and so on.
        max_length: Tokens of the longest text, of which what is more is cut off; None for the tokenizer's own limit.
        pooling: The vector of a whole text: "own", the model's, as CLIP's, of a ``CLIPTextModelWithProjection`` the
            text's embedding; "mean", of its tokens, as sentence transformers; "none"; "auto", own if the model is of
            CLIP, else mean.
        masked: Have networks not attend to what fills. False where one was trained to, as Stable Diffusion.
        local_files_only: Never ask the hub.
        revision: Commit on the hub, 40 hex digits; needed with ``local_files_only=False``, so that a name stays one
            encoder.

    Attributes:
        features: Features of a token.
        pooled_features: Features of the vector of a whole text; 0 without.
        max_length: L, tokens of the longest text.

    Raises:
        ValueError: In one line: transformers is not installed, there is no such folder, it holds no text encoder, or an
            option is wrong.

    Example:
        >>> encoder = TransformersEncoder("t5-v1_1-small", max_length=64)
        >>> tokens, mask, pooled = encoder.encode(["a red three above a small blue seven"])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        layer: int = -1,
        max_length: int | None = None,
        pooling: str = "auto",
        masked: bool = True,
        local_files_only: bool = True,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
        if not local_files_only and not re.fullmatch("[0-9a-f]{40}", revision or ""):
            raise ValueError(
                f"a text encoder of the hub needs revision=..., the 40 hex digits of a commit, got {revision!r}; a "
                "branch or tag moves, and the encoder with it"
            )
        where = {"local_files_only": local_files_only, "revision": revision}
        self.tokenizer, self.model = _load(path, tokenizer or _tokenizer_of(Path(path)), where)
        self.model.eval().requires_grad_(False)
        # what was cut or filled last is a part of a tokenizer's state
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self._rules: str = self.tokenizer.backend_tokenizer.to_str()
        config = self.model.config
        self.is_clip = str(config.model_type).startswith("clip")
        self.layer, self.masked = layer, masked
        self.pooling = ("own" if self.is_clip else "mean") if pooling == "auto" else pooling
        if not -config.num_hidden_layers <= layer <= -1:
            raise ValueError(f"layer must be -{config.num_hidden_layers} .. -1, got {layer}; -1 is the last")
        self.max_length = _length(max_length, self.tokenizer, config)
        self.features: int = config.hidden_size
        self.projects = hasattr(self.model, "text_projection")
        own = config.projection_dim if self.projects and self.pooling == "own" else self.features
        self.pooled_features: int = 0 if self.pooling == "none" else own

    @property
    def fingerprint(self) -> str:
        """Digest of all that tokens depend on: the weights, the tokenizer and the options."""
        digest = hashlib.sha256()
        options = {"layer": self.layer, "length": self.max_length, "pooling": self.pooling, "masked": self.masked}
        digest.update(json.dumps(options, sort_keys=True).encode())
        digest.update(self._rules.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def count_longer(self, captions: Sequence[str]) -> int:
        """The number of captions that have more than ``max_length`` tokens."""
        return sum(len(ids) > self.max_length for ids in self.tokenizer(list(captions))["input_ids"])

    def count_unknown(self, captions: Sequence[str]) -> int:
        """The number of captions that hold what the tokenizer has no token for, as it does of every byte in CLIP."""
        unknown, ends = self.tokenizer.unk_token_id, (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if unknown is None or unknown in ends:
            return 0
        return sum(unknown in ids for ids in self.tokenizer(list(captions))["input_ids"])

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Encode captions, those of no word too, which the model reads as it was trained to.

        Returns:
            Tokens, float32 [N, L, F]; their mask, bool [N, L]; and the vectors of whole texts, [N, F], or NaN without.
        """
        parts = [self._encode(list(captions[i : i + _AT_ONCE])) for i in range(0, len(captions), _AT_ONCE)]
        return EncodedText(*(torch.cat(some) for some in zip(*parts, strict=True)))

    def _encode(self, captions: list[str]) -> EncodedText:
        device = next(self.model.parameters()).device
        read = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = read["input_ids"].to(device), read["attention_mask"].to(device).bool()
        # CLIP's own mask hides what comes later, and Stable Diffusion reads what fills
        told = {"attention_mask": mask.long()} if self.masked else {}
        answer = self.model(input_ids=ids, output_hidden_states=self.layer != -1, **told)
        tokens = answer.last_hidden_state if self.layer == -1 else answer.hidden_states[self.layer]
        return EncodedText(tokens, mask if self.masked else torch.ones_like(mask), self._pooled(answer, tokens, mask))

    def _pooled(self, answer: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "own":
            return answer.text_embeds if self.projects else answer.pooler_output
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(tokens.dtype)
            return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
        return tokens.new_full(tokens.shape[::2], float("nan"))


def _tokenizer_of(path: Path) -> Path:
    beside = path.expanduser().parent / "tokenizer"
    return beside if path.name == "text_encoder" and beside.is_dir() else path


def _load(path: str | Path, tokenizer: str | Path, where: dict[str, Any]) -> tuple[Any, Any]:
    """The tokenizer and the model, of T5 and CLIP the text's half."""
    try:
        import transformers
    except ImportError:
        raise ValueError("a frozen text encoder needs transformers; run: pip install -e '.[text]'") from None
    path, tokenizer = Path(path).expanduser(), Path(tokenizer).expanduser()
    if where["local_files_only"] and not (path / "config.json").is_file():
        raise ValueError(
            f"there is no text encoder in {path}: no config.json; give a folder with one, or allow the hub by "
            "local_files_only=False and a revision"
        )
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), **where)
        kinds = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        projected = (config.architectures or [""])[0] == "CLIPTextModelWithProjection"
        name = "CLIPTextModelWithProjection" if projected else kinds.get(config.model_type, "AutoModel")
        kind = getattr(transformers, name)
        model = kind.from_pretrained(str(path), use_safetensors=True, dtype=torch.float32, **where)
        return transformers.AutoTokenizer.from_pretrained(str(tokenizer), **where), model
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds no text encoder that can be read ({reason}); give another folder") from None


def _length(max_length: int | None, tokenizer: Any, config: Any) -> int:
    limit = tokenizer.model_max_length if tokenizer.model_max_length < _LIMITS else _MOST_TOKENS
    places = getattr(config, "max_position_embeddings", None) or limit
    most = min(limit, places)
    if max_length is None:
        return most
    if not 1 <= max_length <= most:
        raise ValueError(f"max_length must be 1 .. {most} of this text encoder, got {max_length}")
    return max_length
