"""Input of a network besides noisy data, noise level, class and text: an image and its noise, values, and a vector."""

import torch
from torch import Tensor, nn

from .initialization import initialize
from .input_features import InputFourierFeatures

_FREQUENCIES = (0, 1, 2, 3, 4, 5)  # from a period of 2, all of [-1, 1], down to 1/16
_CLEAN = 20.0  # log-SNR from which on a clean image and a noisy one are the same in float32


class ConditionInput(nn.Module):
    """Adds an image to the first convolution's result, and its log-SNR, values and a pooled vector to the embedding.

    An image is convolved by itself, which is what one convolution of x_t and the image, concatenated, does; since it
    bypasses x_t's scaling by c_in, it is seen as it is. Values and the log-SNR go through Fourier features, the pooled
    vector, of a text or an image, through a linear layer. With ``null_condition`` a sample may have NaN throughout in
    place of the image, the values or the pooled vector, which is none: a learned vector stands in each pixel's place,
    or in the embedding, so that a black image and a value of 0 are not the same as none. All weights start at zero, so
    that a trained network without conditions keeps its outputs where it is given one.

    Args:
        channels: Channels of the image; 0 for none.
        num_values: Values of a sample; 0 for none.
        pooled_features: Features of the pooled vector; 0 for none.
        hidden_channels: Channels of the first convolution's result.
        embedding_dim: Features of the embedding.
        null_condition: Take no image, no values and no pooled vector too.

    Source: Saharia et al. 2021, Section 2.3 (image); Ho et al. 2021 (CDM), Section 4.1 (its noise level);
        Saharia et al. 2022 (Imagen), Section 2.3 (pooled vector).
    """

    def __init__(
        self,
        *,
        channels: int,
        num_values: int,
        pooled_features: int = 0,
        hidden_channels: int,
        embedding_dim: int,
        null_condition: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.num_values, self.null_condition = channels, num_values, null_condition
        self.pooled_features = pooled_features
        self.features = InputFourierFeatures(_FREQUENCIES)
        if channels:
            self.conv = initialize(nn.Conv2d(channels, hidden_channels, 3, padding=1), zero=True)
            self.no_image = nn.Parameter(torch.zeros(hidden_channels))
            self.noise = initialize(nn.Linear(self.features.out_channels(1), embedding_dim), zero=True)
        if num_values:
            self.values = initialize(nn.Linear(self.features.out_channels(num_values), embedding_dim), zero=True)
            self.no_values = nn.Parameter(torch.zeros(embedding_dim))
        if pooled_features:
            self.pooled = initialize(nn.Linear(pooled_features, embedding_dim), zero=True)
            self.no_pooled = nn.Parameter(torch.zeros(embedding_dim))

    def to_hidden(self, x: Tensor, image: Tensor | None) -> Tensor | None:
        """The image, as it is added to the first convolution's result.

        Args:
            x: Noisy data, [B, C, H, W].
            image: [B, channels, H, W], with ``null_condition`` NaN throughout where a sample has none; None of a
                network that takes none.

        Returns:
            [B, hidden_channels, H, W], or None.

        Raises:
            ValueError: If the image is missing, unexpected or of another shape; on the CPU, not compiled, also if
                it has NaN that do not stand for none: elsewhere the answer is NaN then.
        """
        expected = (len(x), self.channels, *x.shape[2:]) if self.channels else None
        _check("image", image, expected, "cond_channels")
        if image is None:
            return None
        absent = absent_samples("image", image, null_condition=self.null_condition)[:, None, None, None]
        seen = self.conv(torch.where(absent, 0.0, image).to(x.dtype))
        return torch.where(absent, self.no_image[:, None, None].to(seen.dtype), seen)

    def to_embedding(
        self, batch_size: int, image_log_snr: Tensor | None, values: Tensor | None, pooled: Tensor | None = None
    ) -> Tensor | None:
        """The image's noise, the values and the pooled vector, as they are added to the embedding.

        Args:
            batch_size: B.
            image_log_snr: log-SNR of the noise that the image has, [B]; None where all images are clean.
            values: [B, num_values], of order 1, with ``null_condition`` NaN throughout where a sample has none; None of
                a network that takes none.
            pooled: [B, pooled_features], of order 1, with ``null_condition`` NaN throughout where a sample has none;
                None of a network that takes none.

        Returns:
            [B, embedding_dim], or None.

        Raises:
            ValueError: If values or the pooled vector are missing or unexpected, a shape is wrong, or NaN do not stand
                for none (see ``to_hidden``).
        """
        _check("pooled", pooled, (batch_size, self.pooled_features) if self.pooled_features else None, "cond_pooled")
        _check("values", values, (batch_size, self.num_values) if self.num_values else None, "cond_values")
        total = None
        if self.channels:
            weight = self.noise.weight
            if image_log_snr is None:
                image_log_snr = torch.full((batch_size,), _CLEAN, device=weight.device)
            _check("image_log_snr", image_log_snr, (batch_size,), "")
            scaled = image_log_snr.clamp(-_CLEAN, _CLEAN)[:, None] / _CLEAN
            total = self.noise(self.features(scaled.to(weight.dtype)))
        elif image_log_snr is not None:
            raise ValueError("image must be None: the network takes no image; build it with cond_channels=...")
        if values is not None:
            absent = absent_samples("values", values, null_condition=self.null_condition)[:, None]
            given = torch.where(absent, 0.0, values).to(self.values.weight.dtype)
            told = self.values(self.features(given))
            told = torch.where(absent, self.no_values.to(told.dtype), told)
            total = told if total is None else total + told
        if pooled is not None:
            absent = absent_samples("pooled", pooled, null_condition=self.null_condition)[:, None]
            told = self.pooled(torch.where(absent, 0.0, pooled).to(self.pooled.weight.dtype))
            told = torch.where(absent, self.no_pooled.to(told.dtype), told)
            total = told if total is None else total + told
        return total


def absent_samples(name: str, value: Tensor, *, null_condition: bool) -> Tensor:
    """True for each sample without a field of the condition, which is NaN throughout there, bool [B].

    Raises:
        ValueError: On the CPU, not compiled: there are NaN that do not stand for none.
    """
    nan = value.isnan().flatten(1)
    absent = nan.all(1) if null_condition else torch.zeros_like(nan[:, 0])
    # nothing is read back from a GPU to check
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = nan.any(1) & ~absent
        if bool(wrong.any()):
            none = "NaN throughout is none" if null_condition else "the network was never trained without it"
            raise ValueError(
                f"the condition's {name} must have no NaN, got some in sample {int(wrong.nonzero()[0])} ({none}); "
                f"give each sample its {name}"
            )
    return absent


def _check(name: str, value: Tensor | None, expected: tuple[int, ...] | None, option: str) -> None:
    """Refuse a field that is missing, unexpected or of another shape.

    Raises:
        ValueError: In one line.
    """
    if expected is None and value is not None:
        raise ValueError(f"{name} must be None: the network takes no {name}; build it with {option}=...")
    if expected is not None and (value is None or value.shape != expected):
        got = None if value is None else list(value.shape)
        raise ValueError(
            f"the condition's {name} must have shape {list(expected)}, got {got}; pass Condition({name}=...)"
        )
